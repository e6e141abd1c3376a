"""The samples that a run has on disk: first a few numbers of each, then the whole of those that are chosen.

    rows/*.parquet          ->  StoredRows         ->  light(), read(rows)
    evaluation/**/*.parquet ->  StoredEvaluations  ->  in_order(), read(samples)

A file that cannot be read is left out, and `notes` says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from trd_ray.errors import UserError
from trd_ray.report.samples.choice import Light, cell_of, spread
from trd_ray.report.samples.packed_row import COLUMNS, scored_lists, trained_kl
from trd_ray.rows import RowFiles

_OF_SAMPLE = ["problem_id", "problem", "answer", "reference", "turns", "source", "sample_index", "student_prompt_ids"]
_OF_SAMPLE += [name for name in COLUMNS if name.startswith("y_o.")]


class Sample(NamedTuple):
    evaluation: str
    place: int  # in its file
    tokens: int


class StoredRows:
    def __init__(self, files: Sequence[tuple[int, Path]], look: Callable[[], object] = lambda: None):
        """`files` as (step, file)."""
        self.notes: list[str] = []
        self._look = look
        self._files = {step: file for step, file in files if _can_be_read(file, self.notes)}

    def light(self) -> list[Light]:
        found = []
        columns = ["row", "step", "fault", "y_o.passed", "y_r.passed", "y_o.ids", "y_r.ids", "scored"]
        for table in RowFiles(self._files.values()).tables(columns):
            self._look()
            table = _with_lengths(_with_lengths(table, "y_o.ids"), "y_r.ids")
            plain = table.drop_columns("scored").to_pylist()
            for row, scored in zip(plain, scored_lists(table["scored"]), strict=True):
                cell = cell_of(row["y_o.passed"], row["y_r.passed"], row["fault"])
                tokens = (row["y_o.ids"] or 0) + (row["y_r.ids"] or 0)
                found.append(Light(row["row"], row["step"], cell, tokens, trained_kl(scored)))
        return found

    def read(self, rows: Iterable[Light]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """These rows with COLUMNS, and what their tokens were scored with."""
        wanted = list(rows)
        numbers = [row.row for row in wanted]
        files = [self._files[step] for step in sorted({row.step for row in wanted} & self._files.keys())]
        for table in RowFiles(files).tables(COLUMNS, pc.field("row").isin(numbers)):
            self._look()
            yield from zip(_dicts(table.drop_columns("scored")), scored_lists(table["scored"]), strict=True)


class StoredEvaluations:
    def __init__(self, folder: Path, look: Callable[[], object] = lambda: None):
        """`folder` is evaluation/ of a run; the samples of evaluation.sets lie in folders of it."""
        self.notes: list[str] = []
        self._look = look
        found = {str(file.relative_to(folder).with_suffix("")): file for file in folder.rglob("*.parquet")}
        self._files = {
            name: found[name] for name in sorted(found, key=_course) if _can_be_read(found[name], self.notes)
        }
        self.counts = dict.fromkeys(self._files, 0)  # samples of each, once `in_order` has read them

    def in_order(self) -> list[Sample]:
        """The samples to show, the first ones first: for problems spread evenly, of each evaluation the first sample
        that passes and the first that fails."""
        problems: dict[str, list[Sample]] = {}
        for name, file in self._files.items():
            seen = set()
            for table in _tables(file, ["problem_id", "y_o.passed", "y_o.ids"]):
                self._look()
                for place, one in enumerate(_with_lengths(table, "y_o.ids").to_pylist(), self.counts[name]):
                    if (key := (one["problem_id"], bool(one["y_o.passed"]))) not in seen:
                        seen.add(key)
                        sample = Sample(name, place, one["y_o.ids"] or 0)
                        problems.setdefault(one["problem_id"], []).append(sample)
                self.counts[name] += table.num_rows
        return [sample for problem in spread(list(problems)) for sample in problems[problem]]

    def read(self, samples: Iterable[Sample]) -> Iterator[tuple[str, int, dict[str, Any]]]:
        wanted: dict[str, set[int]] = {}
        for one in samples:
            wanted.setdefault(one.evaluation, set()).add(one.place)
        for name, places in wanted.items():
            begin = 0
            for table in _tables(self._files[name], _OF_SAMPLE):
                self._look()
                some = [at for at in range(table.num_rows) if begin + at in places]
                for at, row in zip(some, _dicts(table.take(some)), strict=True):
                    yield name, begin + at, row
                begin += table.num_rows


def _tables(file: Path, columns: list[str]) -> Iterator[pa.Table]:
    """The samples of an evaluation in order, with those of the columns that it has."""
    stored = ds.dataset(str(file), format="parquet")
    if "row" in stored.schema.names:
        yield from RowFiles([file]).tables(columns)
        return
    # The samples of `trd evaluate`, which hold no problem.
    places = {"sample_index": pc.field("sample")} | {
        name: pc.field(*name.split(".")) for name in columns if name.split(".")[0] in stored.schema.names
    }
    there = {name: place for name, place in places.items() if name in columns}
    for batch in stored.scanner(columns=there).to_batches():
        yield pa.Table.from_batches([batch])


def _with_lengths(table: pa.Table, name: str) -> pa.Table:
    """The table with the number of ids in place of the ids."""
    # pyarrow.compute makes its functions at import, where no type checker sees them.
    lengths = pc.list_value_length(table[name])  # pyright: ignore
    return table.set_column(table.schema.get_field_index(name), name, lengths)


def _dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows, whose lists of numbers are NumPy slices. What is named y_o.text becomes the text of the dict y_o."""
    values = {name: _values(table[name]) for name in table.column_names}
    for n in range(table.num_rows):
        row: dict[str, Any] = {}
        for name, of_column in values.items():
            y, _, part = name.partition(".")
            if part:
                row.setdefault(y, {})[part] = of_column[n]
            else:
                row[name] = of_column[n]
        yield row


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if not pa.types.is_list(kind) or not pa.types.is_integer(kind.value_type):
        return column.to_pylist()
    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        numbers, ends = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        there = chunk.is_valid().to_pylist()
        found += [numbers[ends[n] : ends[n + 1]] if there[n] else None for n in range(len(chunk))]
    return found


def _can_be_read(file: Path, notes: list[str]) -> bool:
    try:
        RowFiles([file]).count_rows()
    except (pa.ArrowInvalid, OSError, UserError) as e:
        notes.append(
            f"{file.parent.name}/{file.name} is left out, since it cannot be read: {' '.join(str(e).split())[:200]}"
        )
        return False
    return True


def _course(name: str) -> tuple[str, int, str]:
    """The place of an evaluation among others: those of a set together, the base before the steps, then the rest."""
    of, _, last = name.rpartition("/")
    return of, {"base": 0}.get(last, 1 if last.startswith("step-") else 2), last
