"""The order in which a run meets its problems, and how many steps they make.

    how many problems, seed, sizes  ->  Order  ->  rows(first, end): the columns of rows.ORDER, and the problem's number

Several sources are mixed by their weights: however many problems were met, each source had its part of them, but for as
many as there are sources. Each is met in epochs of its own.

An order is a pure function of its fields, so a resumed run asks for its tail and gets what it would have met. It holds
no problem: a row names its problem by the number that the problem has in the run's table.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

PERIOD = 10_000  # problems, after which the sources are met in the same turns again: a weight is as fine as 1/PERIOD


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
    - Every epoch meets every problem once, in an order of its own, which depends on (seed, epoch) alone. With weights
      this holds for every source by itself.
    - A step may span two epochs.
    - A row's sampling seed is a hash of (seed, r).
    """

    problems: int
    seed: int
    rollouts_per_step: int
    samples_per_problem: int = 1
    shuffle: bool = True
    steps: int | None = None  # None: one pass over the problems; with weights, as many rows as one pass would have
    sources: tuple[int, ...] = ()  # how many problems each source has, one after another; () where they are not mixed
    weights: tuple[float, ...] = ()  # one a source

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
            epoch, number = self._problem(visit)
            yield {
                "problem_number": number,
                "row": row,
                "step": row // self.rollouts_per_step,
                "epoch": epoch,
                "sample_index": sample_index,
                "seed": seed_of_row(self.seed, row),
            }

    def _problem(self, visit: int) -> tuple[int, int]:
        """The epoch and the number of the problem that the visit meets."""
        if not self.weights:
            epoch, place = divmod(visit, self.problems)
            return epoch, int(_ranking((self.seed, epoch), self.problems, self.shuffle)[place])
        turns = _turns(self.weights)
        period, place = divmod(visit, PERIOD)
        source = int(turns.source[place])
        of_source = period * int(turns.count[source]) + int(turns.before[place])
        epoch, place = divmod(of_source, self.sources[source])
        ranking = _ranking((self.seed, epoch, source + 1), self.sources[source], self.shuffle)
        return epoch, sum(self.sources[:source]) + int(ranking[place])

    def rows_of_sources(self) -> list[int]:
        """How many rows each source gives, [] where sources are not mixed."""
        if not self.weights:
            return []
        turns = _turns(self.weights)
        visits, rest = divmod(self.length.rows, self.samples_per_problem)
        periods, more = divmod(visits, PERIOD)
        met = periods * turns.count + np.bincount(turns.source[:more], minlength=len(self.weights))
        rows = (met * self.samples_per_problem).tolist()
        rows[int(turns.source[more])] += rest  # samples of the last problem
        return rows


@dataclass(frozen=True)
class _Turns:
    """Whose turn it is at each of PERIOD places."""

    source: np.ndarray
    before: np.ndarray  # turns of the same source before this place
    count: np.ndarray  # turns of each source


@lru_cache(maxsize=4)
def _turns(weights: tuple[float, ...]) -> _Turns:
    """The sources in turn, each as evenly as its part of the weights allows."""
    exact = np.array(weights) / sum(weights) * PERIOD
    count = np.maximum(1, exact.astype(int))
    while (off := PERIOD - int(count.sum())) != 0:  # by largest remainder; a source of next to no weight has one turn
        gap = exact - count
        count[int(np.argmax(gap) if off > 0 else np.argmin(np.where(count > 1, gap, np.inf)))] += np.sign(off)
    source = np.repeat(np.arange(len(weights)), count)
    before = np.concatenate([np.arange(n) for n in count])
    turn = np.lexsort((source, (before + 0.5) / count[source]))
    return _Turns(source[turn], before[turn], count)


@lru_cache(maxsize=1024)  # one a source and epoch, since the sources take turns; each has 8 bytes a problem
def _ranking(key: tuple[int, ...], problems: int, shuffle: bool) -> np.ndarray:
    """The numbers of all problems, in the order of the epoch, whose key is (seed, epoch) or (seed, epoch, source)."""
    if not shuffle:
        return np.arange(problems)
    # NumPy promises that a bit generator's raw stream never changes, but not what Generator.permutation makes of it.
    return np.argsort(np.random.PCG64(list(key)).random_raw(problems), kind="stable")


def seed_of_row(seed: int, row: int) -> int:
    """The sampling seed of a row: 63 bits, which fit Arrow's int64 and vLLM's seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()) >> 1
