"""Real devices: one file, one class."""
