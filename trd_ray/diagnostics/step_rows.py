"""The rows of one step as arrays: what every diagnostic of responses reads, once.

    a table of rows.ROW, or of some of its columns as rows.upgrade gives them  ->  StepRows  ->  arrays over B rows

A row that could not be made or judged (`fault`) is sound in nothing: nobody knows what its responses are. A column that
the table lacks reads as null.

Legend: B rows of the step, N tokens of all lists one after another.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.diagnostics.scored import ScoredTokens
from trd_ray.rows import DIAGNOSED, TRAJECTORY


def column_of(table: pa.Table, name: str) -> pa.Array | None:
    """A column, or a field of a trajectory, which may be a column of its own; None where the table has none."""
    y, _, field = name.partition(".")
    if name in table.column_names:
        found = table[name]
    elif field and y in table.column_names and table[y].type.get_field_index(field) >= 0:
        found = pc.struct_field(table[y], field)  # pyright: ignore - pyarrow.compute makes its functions at import
    else:
        return None
    found = found.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


@dataclass(frozen=True)
class Lists:
    """Lists of numbers as one array; a null is an empty list that is not there."""

    values_N: np.ndarray
    lengths_B: np.ndarray
    there_B: np.ndarray

    @classmethod
    def of(cls, column: pa.Array | None, rows: int) -> "Lists":
        if column is None or pa.types.is_null(column.type):
            nothing = np.zeros(rows, dtype=np.int64)
            return cls(np.zeros(0), nothing, nothing.astype(bool))
        lengths = pc.fill_null(pc.list_value_length(column), 0)  # pyright: ignore
        values = pc.list_flatten(column)  # pyright: ignore
        there = column.is_valid().to_numpy(zero_copy_only=False)
        lengths_B = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(values.to_numpy(zero_copy_only=False), lengths_B, there)

    @cached_property
    def starts_B(self) -> np.ndarray:
        return np.cumsum(self.lengths_B) - self.lengths_B

    @cached_property
    def row_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.lengths_B)), self.lengths_B)

    def __getitem__(self, row: int) -> np.ndarray:
        start = self.starts_B[row]
        return self.values_N[start : start + self.lengths_B[row]]


class StepRows:
    def __init__(self, table: pa.Table):
        self.table = table
        self.count = table.num_rows

    @cached_property
    def sound_B(self) -> np.ndarray:
        fault = column_of(self.table, "fault")
        return np.ones(self.count, bool) if fault is None else fault.is_null().to_numpy(zero_copy_only=False)

    @cached_property
    def scored(self) -> ScoredTokens:
        """Of the sound rows."""
        [field] = DIAGNOSED
        column = column_of(self.table, "scored")
        found = ScoredTokens.of(pa.nulls(self.count, field.type) if column is None else column)
        return found.only(self.sound_B[found.row_E])

    @cached_property
    def y_o(self) -> Lists:
        return self._lists("y_o.ids")

    @cached_property
    def y_r(self) -> Lists:
        return self._lists("y_r.ids")

    @cached_property
    def y_o_logprobs(self) -> Lists:
        return self._lists("y_o.logprobs")

    def ids(self, y: str) -> Lists:
        return self.y_o if y == "y_o" else self.y_r

    def _lists(self, name: str) -> Lists:
        return Lists.of(column_of(self.table, name), self.count)

    def values(self, name: str) -> list[Any]:
        column = column_of(self.table, name)
        return [None] * self.count if column is None else column.to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """As float64, NaN for null; of booleans 0 and 1."""
        kind = TRAJECTORY.field(name.partition(".")[2]).type if "." in name else None
        column = column_of(self.table, name)
        if column is None:
            return np.full(self.count, np.nan)
        if kind == pa.bool_() or pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)

    @cached_property
    def passed(self) -> dict[str, np.ndarray]:
        """By trajectory: 1, 0, or NaN where nobody has judged it, or nobody could."""
        return {y: np.where(self.sound_B, self.numbers(f"{y}.passed"), np.nan) for y in ("y_o", "y_r")}

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """By trajectory: how many tokens; NaN where there is none, or the row is not sound."""
        return {
            y: np.where(self.sound_B & self.ids(y).there_B, self.ids(y).lengths_B, np.nan).astype(np.float64)
            for y in ("y_o", "y_r")
        }

    @cached_property
    def kl(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum of each row's KL on what it trained on, and of how many tokens; 0 where it did not train."""
        its = self.scored.kind("trained")
        row_N = its.row_E[its.entry_N][its.finite_N]
        sums_B = np.bincount(row_N, weights=its.tokens["kl"][its.finite_N], minlength=self.count)
        return sums_B, np.bincount(row_N, minlength=self.count).astype(np.float64)
