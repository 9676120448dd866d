"""Wireless mathematics: arrays in, arrays out."""
