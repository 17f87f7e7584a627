"""Starlight, and the star as an artifact."""
