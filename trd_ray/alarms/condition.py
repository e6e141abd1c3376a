"""What an alarm is: a condition, what it means and what to set; and what a share of rows needs to be one."""

from collections.abc import Callable
from dataclasses import dataclass

from trd_ray.alarms.chance import at_least
from trd_ray.alarms.history import History, Share
from trd_ray.alarms.thresholds import ALPHA, END, WINDOW_ROWS


@dataclass(frozen=True)
class AlarmCondition:
    """`means` and `do` are sentences in which words of the run stand in braces (see around.py)."""

    name: str
    means: str
    do: str
    begins: Callable[[History], str | None]  # the sentence that says what was found, with numbers
    ends: Callable[[History], bool]  # asked while it lasts
    told_elsewhere: bool = False  # the run has said it in its own words when it came


def found_above(of: Callable[[int], Share], limit: float) -> Share | None:
    """The share that is above the limit: of the newest step alone, or over the window; None where neither is.

    `of(rows)` gives it over the newest steps with so many rows.
    """
    return next((share for rows in (1, WINDOW_ROWS) if is_above(share := of(rows), limit)), None)


def is_above(share: Share, limit: float) -> bool:
    """Whether chance does not explain that the share is above the limit."""
    return share.value > limit and at_least(share.count, share.n, limit) < ALPHA


def is_over(share: Share, limit: float) -> bool:
    """Whether a share that was above the limit is clearly below it; one that cannot be told any more is over too."""
    return share.value < END * limit
