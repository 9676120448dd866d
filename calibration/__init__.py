"""Measure, fit, profile: what the bench really does, and how well that is known."""
