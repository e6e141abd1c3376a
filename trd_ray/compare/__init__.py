"""Methods side by side: a grid of runs over one set of engines, and one table with intervals."""
