"""Starlight: the star model, how it is found, kept and used as a star domain."""
