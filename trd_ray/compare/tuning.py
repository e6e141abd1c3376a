"""Which learning rates are tried: those of the grid, and more of them while the best one is at its end.

grid, scores so far  ->  rates()   ->  every rate to try; the next one stands there once all before it are scored
rates and scores     ->  chosen()  ->  the best one, None until all are scored
"""

from collections.abc import Callable, Sequence

Scored = Callable[[float], float | None]  # a learning rate -> its score, None while it has none


def rates(grid: Sequence[float], score: Scored, widenings: int) -> list[float]:
    """The grid, and at most `widenings` more rates at the end where the best one is, each at the ratio of that end.

    It widens no more once the best rate has neighbours on both sides.
    """
    found = list(grid)
    for _ in range(widenings if len(grid) > 1 else 0):
        best = chosen(found, score)
        if best is None:
            break
        *_, below, highest = ordered = sorted(found)
        lowest, above = ordered[:2]
        if best == lowest:
            found.append(_rounded(lowest * lowest / above))
        elif best == highest:
            found.append(_rounded(highest * highest / below))
        else:
            break
    return found


def chosen(tried: Sequence[float], score: Scored) -> float | None:
    """The rate with the highest score, the lowest one of equals."""
    scores = {rate: score(rate) for rate in sorted(tried)}
    known = {rate: value for rate, value in scores.items() if value is not None}
    return max(known, key=known.__getitem__) if known and len(known) == len(scores) else None


def at_the_edge(tried: Sequence[float], best: float) -> bool:
    return len(tried) > 1 and best in (min(tried), max(tried))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
