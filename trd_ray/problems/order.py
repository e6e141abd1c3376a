"""The order in which a run meets its problems, and how many steps they make.

    table, seed, sizes  ->  order()  ->  rows of rows.PROBLEM + rows.ORDER

The order is a pure function of its arguments, so a resumed run asks for its tail and gets what it would have met.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


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


def order(
    table: pa.Table,
    *,
    seed: int,
    rollouts_per_step: int,
    samples_per_problem: int = 1,
    shuffle: bool = True,
    steps: int | None = None,
    start_step: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of a run from `start_step` on, each a dict with the columns of rows.PROBLEM and rows.ORDER.

    - Row r belongs to step r // rollouts_per_step. It is sample r % samples_per_problem of its problem in its epoch.
    - Every epoch meets every problem once, in an order of its own, which depends on (seed, epoch) alone.
    - A step may span two epochs.
    - A row's sampling seed is a hash of (seed, r).
    - `length` says where the order ends.
    """
    problems = table.to_pylist()
    rows_in_all = length(
        len(problems), rollouts_per_step=rollouts_per_step, samples_per_problem=samples_per_problem, steps=steps
    ).rows
    ranking: tuple[int, np.ndarray] = (-1, np.empty(0))
    for row in range(start_step * rollouts_per_step, rows_in_all):
        visit, sample_index = divmod(row, samples_per_problem)
        epoch, place = divmod(visit, len(problems))
        if ranking[0] != epoch:
            ranking = (epoch, _ranking(seed, epoch, len(problems), shuffle))
        yield {
            **problems[ranking[1][place]],
            "row": row,
            "step": row // rollouts_per_step,
            "epoch": epoch,
            "sample_index": sample_index,
            "seed": seed_of_row(seed, row),
        }


def _ranking(seed: int, epoch: int, problems: int, shuffle: bool) -> np.ndarray:
    if not shuffle:
        return np.arange(problems)
    # NumPy promises that a bit generator's raw stream never changes, but not what Generator.permutation makes of it.
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(problems), kind="stable")


def seed_of_row(seed: int, row: int) -> int:
    """The sampling seed of a row: 63 bits, which fit Arrow's int64 and vLLM's seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()) >> 1
