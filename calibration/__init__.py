"""Measure, fit, profile."""
