"""A corpus that `trd refine` made: its rows, complete or refused, and the problems that they answer.

folder/rows/step-*.parquet  ->  open_corpus()        ->  RowFiles: a row has the columns of rows.ROW
                            ->  problems_of_corpus() ->  table of rows.PROBLEM, without what is not stored: tests
                                                         and the columns of the data that are none of ours
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trd_ray.errors import UserError
from trd_ray.rows import PROBLEM, ROW, RowFiles


def open_corpus(folder: str | Path) -> RowFiles:
    """The rows of the corpus in a folder. Raises UserError where there is no complete corpus."""
    parts = sorted((Path(folder).expanduser() / "rows").glob("step-*.parquet"))
    if not parts:
        raise UserError(
            f"{folder} holds no corpus (rows/step-*.parquet): make one with jobs/refine.py, or set data.path"
        )
    remedy = "make it again with jobs/refine.py, or set data.path to another"
    try:
        corpus = RowFiles(parts)
        numbers = np.sort(corpus.to_table(["row"])["row"].to_numpy())
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"the corpus in {folder} cannot be read ({' '.join(str(e).split())[:300]}): {remedy}") from e
    gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
    if len(gaps):
        raise UserError(
            f"the corpus in {folder} is not complete: its {len(numbers)} rows should be numbered 0, 1, 2 and on, but "
            f"row number {gaps[0]} in order has number {numbers[gaps[0]]}; {remedy}"
        )
    return corpus


def problems_of_corpus(folder: str | Path, rows: int | None = None) -> pa.Table:
    """Each problem once, in the order of the corpus's rows. Only the first `rows` rows count."""
    first = None if rows is None else pc.field("row") < rows
    names = [field.name for field in PROBLEM if field.name in ROW.names]
    found: dict[str, dict] = {}
    for table in open_corpus(folder).tables(names, first):
        for problem in table.to_pylist():
            found.setdefault(problem["problem_id"], problem)
    return pa.Table.from_pylist(list(found.values()), schema=pa.schema(PROBLEM))
