"""Optimisers that know nothing of radio."""
