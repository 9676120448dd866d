"""Where orders become action."""
