"""LoRA switching: modules, powers and shares of the band, round by round under long-term limits."""
