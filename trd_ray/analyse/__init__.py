"""`trd analyse`: the diagnostics of recorded rows, in the terminal or as JSON."""
