"""What the recorded rows and metrics say about a run."""
