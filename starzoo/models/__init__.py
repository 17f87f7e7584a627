"""A model named, checked, loaded, built and trained."""
