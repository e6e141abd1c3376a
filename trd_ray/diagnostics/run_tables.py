"""The rows of a directory, a step at a time: of a run, a run that goes on, a corpus, or an evaluation.

    rows/step-*.parquet, or evaluation/<benchmark>.parquet  ->  RunTables.each()  ->  (step, table) in order

A directory of `trd evaluate` has no steps: each benchmark is one, numbered from 1, and its name is the rows' source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trd_ray.errors import UserError
from trd_ray.rows import RowFiles, upgrade

ALWAYS = ("row", "step", "source")


@dataclass(frozen=True)
class RunTables:
    files: list[Path]
    kind: str  # "rows" | "evaluation"
    steps: tuple[int | None, int | None] = (None, None)  # the first and the last that count
    source: str | None = None  # the only one that counts

    @classmethod
    def of(
        cls, directory: Path, steps: tuple[int | None, int | None] = (None, None), source: str | None = None
    ) -> "RunTables":
        """Raises UserError for a directory that is neither a run nor an evaluation with samples.

        A run that has no rows yet has no files.
        """
        files = sorted((directory / "rows").glob("step-*.parquet"), key=_number)
        if files:
            # Version 2 of the rows counted steps from 0, so a neighbour may be of a step that is asked for.
            first, last = steps
            near = [f for f in files if (first or 0) - 1 <= _number(f) and (last is None or _number(f) <= last)]
            return cls(near, "rows", steps, source)
        if (directory / "rows").is_dir() and (directory / "recipe.yaml").is_file():
            return cls([], "rows", steps, source)
        files = sorted((directory / "evaluation").glob("*.parquet"))
        if not files:
            runs = sorted({f.parents[1].name for f in directory.glob("*/rows/step-*.parquet")})
            instead = f"; it holds runs: name one of them, such as {directory / runs[0]}" if runs else ""
            raise UserError(
                f"{directory} holds no rows (rows/step-*.parquet), nor the samples of an evaluation"
                f"{instead or ': name the directory of a run, of a corpus or of an evaluation that is done'}"
            )
        return cls(files, "evaluation", steps, source)

    def each(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """The steps in order, with these columns (see rows.upgrade) and ALWAYS. Raises UserError for a damaged file."""
        wanted = tuple(dict.fromkeys([*ALWAYS, *columns]))
        waiting: list[pa.Table] = []  # parts of one step
        try:
            tables = self._rows(wanted) if self.kind == "rows" else self._samples(wanted)
            for part in (part for table in tables for part in _by_step(self._chosen(table))):
                if waiting and _step_of(part) != _step_of(waiting[0]):
                    yield _step_of(waiting[0]), pa.concat_tables(waiting)
                    waiting = []
                waiting.append(part)
        except FileNotFoundError as e:
            raise UserError(
                f"{e.filename or e} was moved while it was read, as by a run that resumes: ask again"
            ) from e
        except (pa.ArrowInvalid, OSError) as e:
            said = " ".join(str(e).split())[:300]
            raise UserError(f"a file of rows cannot be read ({said}): put it back, or move it away") from e
        if waiting:
            yield _step_of(waiting[0]), pa.concat_tables(waiting)

    def _rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return RowFiles(self.files).tables(columns)

    def _samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        first = 0
        for number, file in enumerate(self.files, 1):
            for batch in pq.ParquetFile(file).iter_batches():
                table = upgrade(pa.Table.from_batches([batch]), columns)
                rows = table.num_rows
                made = {
                    "row": pa.array(np.arange(first, first + rows), pa.int64()),
                    "step": pa.array(np.full(rows, number), pa.int32()),
                    "source": pa.array([file.stem] * rows, pa.string()),
                }
                first += rows
                for name, values in made.items():
                    table = table.set_column(table.schema.get_field_index(name), name, values)
                yield table

    def _chosen(self, table: pa.Table) -> pa.Table:
        first, last = self.steps
        # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
        if first is not None:
            table = table.filter(pc.greater_equal(table["step"], first))  # pyright: ignore
        if last is not None:
            table = table.filter(pc.less_equal(table["step"], last))  # pyright: ignore
        if self.source is not None:
            table = table.filter(pc.equal(table["source"], self.source))  # pyright: ignore
        return table


def _by_step(table: pa.Table) -> Iterator[pa.Table]:
    """The table cut where the step changes."""
    steps = table["step"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        if end > begin:
            yield table.slice(begin, end - begin)


def _step_of(table: pa.Table) -> int:
    return table["step"][0].as_py()


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
