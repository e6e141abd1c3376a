"""Which of several teachers refines and teaches each problem: said by the data, checked before anything starts.

    table of rows.PROBLEM, the teachers' names  ->  with_teachers()  ->  the table, whose `teacher` is one of the names

A row that names none has the teacher that is called as its source. With one teacher the column is null.
"""

from collections.abc import Sequence

import pyarrow as pa

from trd_ray.config import Recipe, close_to
from trd_ray.errors import UserError

TEACHER = "teacher"
SHOWN = 3


def with_teachers(
    table: pa.Table, names: Sequence[str], place: str, column: str | None = None, *, corpus: bool = False
) -> pa.Table:
    """The table with the teacher of each row. `column` is the data's, as data.teacher_column names it.

    A row that names none has the teacher that is called as its source. The rows of a `corpus` were refined by the
    teacher that they name, so there a source says nothing.

    Raises UserError for a name that is none of `names`, and for rows without a teacher.
    """
    if not names:
        return _replaced(table, [None] * table.num_rows)
    sources = [None] * table.num_rows if corpus else _texts(table, "source")
    said = [
        name or (source if source in names else None)
        for name, source in zip(_texts(table, TEACHER), sources, strict=True)
    ]
    ids = table["problem_id"].to_pylist()
    rows = "rows" if corpus else "problems"
    unknown = [(name, one) for name, one in zip(said, ids, strict=True) if name and name not in names]
    if unknown:
        name, first = unknown[0]
        others = sorted({other for other, _ in unknown} - {name})[:SHOWN]
        more = f" (also {', '.join(map(repr, others))})" if others else ""
        raise UserError(
            f"{len(unknown)} of {table.num_rows} {rows} of {place} name a teacher that the recipe does not have, "
            f"such as {name!r}{more} of problem {first}; the teachers are {', '.join(names)}"
            f"{close_to(name, list(names))}: {'' if corpus else 'name one of them there, or '}add it to teachers"
        )
    without = [one for name, one in zip(said, ids, strict=True) if not name]
    if without:
        raise UserError(
            f"{len(without)} of {table.num_rows} {rows} of {place} name no teacher, the first being {without[0]}, "
            f"but the recipe has {len(names)}: {', '.join(names)}: {_remedy(column, corpus)}"
        )
    return _replaced(table, said)


def _remedy(column: str | None, corpus: bool) -> str:
    if corpus:
        return "set teacher in place of teachers, or make it again with trd refine and these teachers"
    if column:
        return f"fill the column {column!r} (data.teacher_column) for them"
    return "set data.teacher_column to the column with their names, or a teacher in each of data.sources"


def with_teachers_of(recipe: Recipe, table: pa.Table) -> pa.Table:
    """The problems of a recipe with the teacher of each; those of its corpus name who refined them."""
    data = recipe.data
    corpus = data.source == "corpus"
    place = f"the corpus {data.path}" if corpus else ", ".join(data.paths)
    return with_teachers(table, list(recipe.teachers), place, data.teacher_column, corpus=corpus)


def without_problems(table: pa.Table, names: Sequence[str]) -> list[str]:
    """A note for each teacher that no problem names: its engines would start for nothing."""
    named = set(_texts(table, TEACHER))
    return [
        f"no problem names the teacher {name}: its engines and its weights wait in vain"
        for name in names
        if name not in named
    ]


def _texts(table: pa.Table, column: str) -> list[str | None]:
    return table[column].to_pylist() if column in table.column_names else [None] * table.num_rows


def _replaced(table: pa.Table, values: Sequence[str | None]) -> pa.Table:
    field = pa.field(TEACHER, pa.string())
    if TEACHER not in table.column_names:
        return table.append_column(field, pa.array(values, pa.string()))
    return table.set_column(table.column_names.index(TEACHER), field, pa.array(values, pa.string()))
