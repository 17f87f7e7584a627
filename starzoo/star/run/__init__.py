"""A run's folder: checkpoints, lock, log, signals and status."""
