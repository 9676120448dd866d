"""Adapter mathematics."""
