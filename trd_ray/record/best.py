"""Which checkpoints of a run stay: the newest ones, and the best one by a metric.

    metrics of a checkpoint, a name  ->  value_of()          ->  what it is best by, or None
    checkpoints in order, values     ->  kept_checkpoints()  ->  those that stay

A checkpoint that loses a guard of evaluation.sets is not the best, whatever its metric.

Pure.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from trd_ray.config import is_lost_guard

T = TypeVar("T")


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """By what a checkpoint with these metrics is best; None for one that loses a guard of evaluation.sets."""
    loses = any(value for metric, value in metrics.items() if is_lost_guard(metric))
    return None if loses else metrics.get(name)


def kept_checkpoints(found: Sequence[tuple[T, float | None]], last: int, best_is: str) -> set[T]:
    """The `last` newest of the checkpoints in order, and the one with the best value; most have none."""
    values = [(value, checkpoint) for checkpoint, value in found if value is not None]
    best = (max if best_is == "max" else min)(values, key=lambda pair: pair[0])[1:] if values else ()
    return {checkpoint for checkpoint, _ in found[-last:]} | set(best)
