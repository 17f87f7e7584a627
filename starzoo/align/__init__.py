"""Alignment modulo permutation: features, matching methods and the assignment solver."""
