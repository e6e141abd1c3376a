"""A few rows of a step as the table that trackers show: what each cell of the ledger looks like.

    the step's rows (Arrow)  ->  few()  ->  COLUMNS and at most so many lists of plain values

Texts are a model's or a data set's: they are cut, and go out as data alone.
"""

from itertools import zip_longest
from typing import Any

import pyarrow as pa

from trd_ray.rows import dicts, part

COLUMNS = [
    *("step", "row", "problem_id", "problem", "answer", "y_o", "y_o_passed", "y_o_verdict"),
    *("y_r", "y_r_passed", "y_r_verdict", "trained_on"),
]
LONGEST = 4000  # characters of a text: a table that is looked at, not the record of the run, which is rows/
_READ = [
    *("row", "problem_id", "problem", "answer", "train", "trajectory"),
    *(f"{y}.{name}" for y in ("y_o", "y_r") for name in ("text", "passed", "extracted", "detail")),
]


def few(table: pa.Table, step: int, most: int) -> list[list[Any]]:
    """At most so many rows, first one of each cell {y_o pass, fail} x {y_r pass, fail, none}; `step` counts from 1."""
    cells: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in dicts(table, _READ):
        cells.setdefault((part(row, "y_o", "passed"), part(row, "y_r", "passed")), []).append(row)
    in_turn = [row for turn in zip_longest(*cells.values()) for row in turn if row is not None]
    return [_cells(row, step) for row in in_turn[:most]]


def _cells(row: dict[str, Any], step: int) -> list[Any]:
    found = [step, row["row"], row["problem_id"], _cut(row["problem"]), _cut(row["answer"])]
    for y in ("y_o", "y_r"):
        found += [_cut(part(row, y, "text")), part(row, y, "passed"), _cut(_verdict(row, y))]
    return [*found, row["trajectory"] if row["train"] else None]


def _verdict(row: dict[str, Any], y: str) -> str | None:
    """What the verifier made of the response: the answer that it found, and what it says of it."""
    said = [part(row, y, name) for name in ("extracted", "detail")]
    return ": ".join(text for text in said if text) or None


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({len(text)} characters)"
