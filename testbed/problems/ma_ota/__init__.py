"""Movable antennas and over-the-air aggregation (arXiv 2506.00011): model, bound, problem and algorithm."""
