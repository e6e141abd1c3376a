"""What made the weights: one SHA-256 over the (step, row) of every row that trained, in the order of the steps.

    START -> advance(step 1, its rows) -> advance(step 2, its rows) -> ... -> after(step n)

Each value is made of the one before it, so two runs have the same one only if the same rows trained in the same steps.
The learner's ranks compute it from what they are told to train on, and keep it with the weights in the checkpoint. The
ledger (rows/) gives the same value by itself: a row that was lost, or trained twice, would make the two differ.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.rows import RowFiles

START = hashlib.sha256().hexdigest()  # of weights that nothing has trained


def advance(before: str, step: int, rows: Sequence[int]) -> str:
    """The value after a step, counted from 1, that trained on these rows; `before` is that after the step before."""
    pairs = np.array([[step, row] for row in rows], "<i8").reshape(-1, 2)
    return hashlib.sha256(bytes.fromhex(before) + np.int64(step).astype("<i8").tobytes() + pairs.tobytes()).hexdigest()


def rows_that_train(table: pa.Table) -> list[int]:
    """The numbers of a step's rows that train, in their order."""
    return table["row"].filter(pc.equal(table["train"], True)).to_pylist()  # pyright: ignore - made at import


def of_ledger(files: Iterable[Path], until: int | None = None) -> str:
    """The value that rows/step-*.parquet give, up to the step `until`, or to the last one."""
    value = START
    for number, file in sorted((int(file.stem.removeprefix("step-")), file) for file in files):
        if until is None or number <= until:
            value = advance(value, number, rows_that_train(RowFiles([file]).to_table(["row", "train"])))
    return value
