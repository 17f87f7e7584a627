"""Templates and cards: data only."""
