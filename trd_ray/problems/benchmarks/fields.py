"""Published rows become problems: which column is which, and what to say when it is another data set.

One benchmark is published under several schemas, so a column has the names that its known publishers give it.
No other name is guessed.
"""

import hashlib
from collections import Counter
from typing import Any

import pyarrow as pa

from trd_ray import rows
from trd_ray.errors import UserError
from trd_ray.problems.spool import spooled

PROBLEM = ("problem", "Problem", "question", "prompt")
ANSWER = ("answer", "Answer")
ID = ("id", "ID", "problem_idx", "question_id", "unique_id", "task_id")

_SCHEMA = pa.schema(rows.PROBLEM)


def text(row: dict[str, Any], names: tuple[str, ...], where: str, what: str) -> str:
    """The first of these columns that the row has, as text. Raises UserError if it has none, or an empty one."""
    column = next((name for name in names if name in row), None)
    if column is None:
        raise UserError(
            f"{where} is no row of {what}: expected a column {' or '.join(names)}, found {', '.join(row) or 'none'}"
        )
    value = row[column]
    # A bool is an int in Python, but it is no answer.
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UserError(f"{where}: {column} is {value!r}, expected text or a number: fix that row of {what}")
    return str(value)


def identifier(row: dict[str, Any]) -> str:
    """What the publisher calls the problem, or ""."""
    return next((str(row[name]) for name in ID if row.get(name) is not None), "")


def problem(statement: str, own_id: str, *, answer: str = "", tests: bytes | None = None) -> dict[str, Any]:
    return {"problem_id": own_id, "problem": statement, "answer": answer, "reference": "", "tests": tests}


def table(name: str, found: list[dict[str, Any]]) -> pa.Table:
    """Problems as rows.PROBLEM with ids of the form `name/id`.

    Where the publisher's ids are missing or stand twice, which happens when two files are joined, every id is a hash of
    the problem's text. The second copy of a text gets the suffix -2.
    """
    ids = [row["problem_id"] for row in found]
    if not all(ids) or len(set(ids)) < len(ids):
        ids = [hashlib.sha256(row["problem"].encode()).hexdigest()[:16] for row in found]
        seen: Counter[str] = Counter()
        for place, digest in enumerate(ids):
            seen[digest] += 1
            ids[place] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    named = [row | {"problem_id": f"{name}/{own}"} for row, own in zip(found, ids, strict=True)]
    return spooled(named, _SCHEMA)[0]
