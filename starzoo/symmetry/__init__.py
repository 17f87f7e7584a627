"""The permutation symmetries of a network, found by tracing it."""
