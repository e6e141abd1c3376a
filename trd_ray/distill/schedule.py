"""The learning rate over a run: a linear warm-up in which every update counts, then half a cosine."""

import math


def share_of_lr(update: int, warmup: int, updates: int, min_ratio: float) -> float:
    """The share of learner.lr that an update, counted from 0, uses: (update + 1) / warmup, then 1 down to `min_ratio`.

    transformers' schedule of the same shape begins with update / warmup, so its first update changes nothing.
    """
    if update < warmup:
        return (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, updates - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
