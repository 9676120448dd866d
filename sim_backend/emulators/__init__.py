"""Emulators that speak the wire protocols of real devices, all in one simulated world."""
