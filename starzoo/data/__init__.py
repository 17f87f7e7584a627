"""Images of a classification task."""
