"""What a run leaves and shows: directory, metrics, display, ledger, timeline, summary."""
