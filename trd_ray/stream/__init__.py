"""The stream from problems to examples: one Ray Data graph for a run, and the feed that hands out its steps."""
