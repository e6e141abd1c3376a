"""The order in which a run meets its problems, and how many steps they make.

    how many problems, seed, sizes  ->  Order  ->  rows(first, end): the columns of rows.ORDER, and the problem's number

An order is a pure function of its fields, so a resumed run asks for its tail and gets what it would have met. It holds
no problem: a row names its problem by the number that the problem has in the run's table.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Length:
    """How long a run is: its steps, its rows, and the rows of a partial last step, which one pass leaves out."""

    steps: int
    rows: int
    dropped_rows: int


def length(problems: int, *, rollouts_per_step: int, samples_per_problem: int = 1, steps: int | None = None) -> Length:
    """The length of `steps` full steps, over as many epochs as they take. By default it is one pass over the problems.

    The loop expects full steps, so one pass leaves out a partial last step, unless it is the only one.
    """
    if steps is not None:
        return Length(steps, steps * rollouts_per_step, 0)
    available = problems * samples_per_problem
    if available < rollouts_per_step:
        return Length(1, available, 0)
    full = available // rollouts_per_step
    return Length(full, full * rollouts_per_step, available % rollouts_per_step)


@dataclass(frozen=True)
class Order:
    """The rows of a run.

    - Row r belongs to step r // rollouts_per_step. It is sample r % samples_per_problem of its problem in its epoch.
    - Every epoch meets every problem once, in an order of its own, which depends on (seed, epoch) alone.
    - A step may span two epochs.
    - A row's sampling seed is a hash of (seed, r).
    """

    problems: int
    seed: int
    rollouts_per_step: int
    samples_per_problem: int = 1
    shuffle: bool = True
    steps: int | None = None  # None: one pass over the problems

    @property
    def length(self) -> Length:
        """Where the order ends."""
        return length(
            self.problems,
            rollouts_per_step=self.rollouts_per_step,
            samples_per_problem=self.samples_per_problem,
            steps=self.steps,
        )

    def rows(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        """Rows `first` to `end` (without it), as far as the order has them: problem_number and columns of rows.ORDER.

        Any range takes the time of its own rows, and that of ranking the problems of its epochs.
        """
        for row in range(first, min(end, self.length.rows)):
            visit, sample_index = divmod(row, self.samples_per_problem)
            epoch, place = divmod(visit, self.problems)
            yield {
                "problem_number": int(_ranking(self.seed, epoch, self.problems, self.shuffle)[place]),
                "row": row,
                "step": row // self.rollouts_per_step,
                "epoch": epoch,
                "sample_index": sample_index,
                "seed": seed_of_row(self.seed, row),
            }


@lru_cache(maxsize=4)
def _ranking(seed: int, epoch: int, problems: int, shuffle: bool) -> np.ndarray:
    """The numbers of all problems, in the order of the epoch."""
    if not shuffle:
        return np.arange(problems)
    # NumPy promises that a bit generator's raw stream never changes, but not what Generator.permutation makes of it.
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(problems), kind="stable")


def seed_of_row(seed: int, row: int) -> int:
    """The sampling seed of a row: 63 bits, which fit Arrow's int64 and vLLM's seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()) >> 1
