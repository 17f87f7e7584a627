"""Measurements on paths between models, and of the models' predictions."""
