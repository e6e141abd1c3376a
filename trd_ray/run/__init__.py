"""A run's directory, its metrics and its display."""
