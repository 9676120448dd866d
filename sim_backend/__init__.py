"""The twin: devices of a simulated room."""
