"""`trd status`, `logs`, `stop`, `pause`, `unpause`, `checkpoint` and `scale`: a run seen and steered from outside."""
