"""Alignment modulo permutation: permutations, the assignment solver and the matching methods."""
