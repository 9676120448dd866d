"""Joint client-specific pruning and bandwidth allocation (arXiv 2602.01024): model, bound, problem and algorithms."""
