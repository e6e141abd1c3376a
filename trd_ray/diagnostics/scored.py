"""What the learner found at each token (`scored` of rows.ROW), as flat arrays.

    the column, a list of structs a row  ->  ScoredTokens.of()  ->  entries: one trajectory under one view each
                                         ->  .kind("y_o_vanilla"), .paired("refine")  ->  some of them

An entry without tokens, without one of its four lists, or with lists of unequal lengths is left out.

A row may have a trajectory under a view twice: trained on, with the weights of that update, and looked at, with the
weights before the step (diagnostics.rows). As a kind, what was trained on counts. Where y_o and y_r are paired, what
was looked at counts: the weights are the same for both then.

Legend: E entries, N tokens of all entries one after another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FIELDS = ("kl", "student_nll", "teacher_nll", "onset")
TRAINED = "trained"
VIEWS = ("refine", "vanilla")
OF_VIEWS = tuple(f"{y}_{view}" for y in ("y_o", "y_r") for view in VIEWS)
KINDS = (TRAINED, *OF_VIEWS)
LARGEST = np.finfo(np.float16).max


@dataclass(frozen=True)
class ScoredTokens:
    row_E: np.ndarray  # the place of the row in its table
    kind_E: np.ndarray  # one of OF_VIEWS
    trained_E: np.ndarray
    lengths_E: np.ndarray  # at least 1
    tokens: dict[str, np.ndarray]  # of FIELDS, each float16 of N tokens

    @classmethod
    def of(cls, column: pa.ChunkedArray | pa.Array) -> "ScoredTokens":
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(column, pa.ChunkedArray):  # of no chunks
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
        # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
        entries = pc.list_flatten(column)  # pyright: ignore
        row_E = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)  # pyright: ignore
        ys, views, trained = (_field(entries, name).to_pylist() for name in ("trajectory", "view", "trained"))
        kind_E = np.array([f"{y}_{view}" for y, view in zip(ys, views, strict=True)], dtype=object)
        trained_E = np.array([bool(one) for one in trained], dtype=bool)
        lists = {name: _field(entries, name) for name in FIELDS}
        lengths = {name: _lengths(one) for name, one in lists.items()}
        lengths_E = lengths["kl"]
        there_E = (lengths_E > 0) & _first_of_each(row_E, kind_E, trained_E)
        for its_E in lengths.values():
            there_E &= its_E == lengths_E
        tokens = {name: _tokens(one)[_of_entries(there_E, lengths[name])] for name, one in lists.items()}
        return cls(row_E[there_E], kind_E[there_E], trained_E[there_E], lengths_E[there_E], tokens)

    def __len__(self) -> int:
        return len(self.row_E)

    @cached_property
    def starts_E(self) -> np.ndarray:
        return np.cumsum(self.lengths_E) - self.lengths_E

    @cached_property
    def entry_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.lengths_E)

    @cached_property
    def place_N(self) -> np.ndarray:
        """The place of each token in its trajectory, from 0."""
        return np.arange(len(self.entry_N)) - np.repeat(self.starts_E, self.lengths_E)

    @cached_property
    def finite_N(self) -> np.ndarray:
        """Tokens at which all that was found is finite. What float16 cannot hold is stored as the end of its range."""
        found = np.ones(int(self.lengths_E.sum()), dtype=bool)
        for values_N in self.tokens.values():
            found &= np.abs(values_N) < LARGEST  # false for NaN
        return found

    def only(self, chosen_E: np.ndarray) -> "ScoredTokens":
        if chosen_E.all():
            return self
        of_N = _of_entries(chosen_E, self.lengths_E)
        tokens = {name: values_N[of_N] for name, values_N in self.tokens.items()}
        return ScoredTokens(
            self.row_E[chosen_E], self.kind_E[chosen_E], self.trained_E[chosen_E], self.lengths_E[chosen_E], tokens
        )

    def of_kind(self, name: str, trained_first: bool = True) -> np.ndarray:
        """Which entries are of one of KINDS, one of each row."""
        if name == TRAINED:
            return self.trained_E
        its_E = self.kind_E == name
        preferred_E = its_E & (self.trained_E == trained_first)
        return its_E & (preferred_E | ~np.isin(self.row_E, self.row_E[preferred_E]))

    def kind(self, name: str) -> "ScoredTokens":
        return self.only(self.of_kind(name))

    def kinds(self) -> dict[str, "ScoredTokens"]:
        """Those of KINDS that there are."""
        return {name: found for name in KINDS if len(found := self.kind(name))}

    def of_rows(self, rows: Iterable[int] | np.ndarray) -> "ScoredTokens":
        return self.only(np.isin(self.row_E, np.asarray(rows)))

    def paired(self, view: str) -> tuple["ScoredTokens", "ScoredTokens"] | None:
        """y_o and y_r under a view, of the rows that have both; None where no row has."""
        y_o, y_r = (self.only(self.of_kind(f"{y}_{view}", trained_first=False)) for y in ("y_o", "y_r"))
        rows = np.intersect1d(y_o.row_E, y_r.row_E)
        return (y_o.of_rows(rows), y_r.of_rows(rows)) if len(rows) else None


def _field(entries: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(entries, name)  # pyright: ignore


def _lengths(lists: pa.Array) -> np.ndarray:
    """-1 for null."""
    return pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)  # pyright: ignore


def _tokens(lists: pa.Array) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False)  # pyright: ignore


def _of_entries(chosen_E: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
    """Which tokens belong to the chosen entries. An entry whose list is null has the length -1 and no tokens."""
    return np.repeat(chosen_E, np.maximum(lengths_E, 0))


def _first_of_each(*of_E: np.ndarray) -> np.ndarray:
    seen: set[tuple] = set()
    first = []
    for key in zip(*(one_E.tolist() for one_E in of_E), strict=True):
        first.append(key not in seen)
        seen.add(key)
    return np.array(first, dtype=bool)
