"""Rows as a source has them become a table of rows.PROBLEM, by a map of our column names to the source's.

    a source, a map  ->  problems()  ->  table of rows.PROBLEM, with unique problem_ids, and the spool of its tests

Texts are kept in memory. Tests are checked, packed and written to disk row by row, so they never pile up in memory.

Everything wrong with a row is refused here as a UserError that names the place and the remedy.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa

from trd_ray import rows
from trd_ray.errors import UserError
from trd_ray.problems import taco
from trd_ray.problems.sources import Row, Source
from trd_ray.problems.spool import Spool, spooled
from trd_ray.verify.code.tests import Tests

SCHEMA = pa.schema(rows.PROBLEM)

# Column names that many data sets use. They only feed the suggestion: nothing is mapped unasked.
_USUAL = {
    "problem": ["question", "prompt", "query", "input", "instruction"],
    "answer": ["final_answer", "expected_answer", "target", "label", "ground_truth"],
}


def problems(
    source: Source, mapped: dict[str, str], group: str, path: str, limit: int | None = None
) -> tuple[pa.Table, Spool]:
    """A table of rows.PROBLEM from the first `limit` rows of a source and a map of our column names to its own.

    `group` are the keys of the recipe that a message names, `path` is the source's name. Raises UserError.
    """
    return spooled(_problems(islice(source.rows(), limit), _columns(mapped, source.names, group, path), group), SCHEMA)


def fitting(mapped: dict[str, str], found: list[str]) -> dict[str, str]:
    """The part of a column map whose columns the source has."""
    return {name: column for name, column in mapped.items() if column in found}


def _columns(mapped: dict[str, str], found: list[str], group: str, source: str) -> dict[str, str]:
    """Our name -> the source's column, for the columns that the source has."""
    known = SCHEMA.names
    # A column that happens to be called teacher may hold anything: it is read where data.teacher_column names it.
    names = {name: name for name in known if name in found and name != "teacher"} | mapped
    faults = []
    for name, column in mapped.items():
        if name not in known:
            faults.append(f"unknown key {group}.columns.{name}: the columns are {', '.join(known)}")
        elif column not in found:
            close = difflib.get_close_matches(column, found, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            faults.append(
                f"{group}.columns.{name} names the column {column!r}{hint}, but {source} has {', '.join(found)}"
            )
    missing = [
        name for name in ("problem", "answer") if name not in names and not (name == "answer" and "tests" in names)
    ]
    dialogue = next((name for name in ("messages", "conversations") if name in found), None)
    if "problem" in missing and dialogue:
        faults.append(
            f"{source} has a column {dialogue!r}, but no column 'problem', only {', '.join(found)}: a problem is one "
            "text and not a conversation, so write the user's message of each row to a column problem"
        )
    elif missing:
        keys = " ".join(f"{group}.columns.{_likely(name, found)}" for name in missing)
        which = f"column {missing[0]!r}" if len(missing) == 1 else "columns 'problem' and 'answer'"
        faults.append(f"{source} has no {which}, only {', '.join(found)}: set {keys}")
    if faults:
        raise UserError("; ".join(faults))
    return names


def _likely(name: str, found: list[str]) -> str:
    """What to set a missing column to, as `name=COLUMN`."""
    if name == "answer" and "input_output" in found:
        return "tests=input_output"
    usual = [u for u in _USUAL[name] if u in found]
    return f"{name}={[*usual, *difflib.get_close_matches(name, found, n=1), 'NAME'][0]}"


def _problems(found: Iterable[Row], names: dict[str, str], group: str) -> Iterator[dict[str, Any]]:
    seen: dict[str, str] = {}  # problem_id -> where
    copies: dict[str, int] = {}
    for where, row in found:
        text = {name: _text(row.get(column), where, column) for name, column in names.items() if name != "tests"}
        tests = _tests(row.get(names["tests"]), where, names["tests"]) if "tests" in names else None
        for name in text.keys() - {"reference", "teacher"}:
            if not text[name].strip() and not (name == "answer" and tests):
                raise UserError(
                    f"{where}: {names[name]} is empty: fill it in, remove that row, or set {group}.columns.{name} "
                    "to another column"
                )
        if "answer" not in text and not tests:
            raise UserError(f"{where}: {names['tests']} is empty, and there is no answer: give the row one of them")
        if "problem_id" not in text:
            digest = hashlib.sha256(text["problem"].encode()).hexdigest()[:16]
            copies[digest] = copies.get(digest, 0) + 1
            text["problem_id"] = digest if copies[digest] == 1 else f"{digest}-{copies[digest]}"
        key = text["problem_id"]
        if key in seen:
            raise UserError(
                f"the {names.get('problem_id', 'problem_id')} {key!r} stands twice, in {seen[key]} and in {where}: "
                f"make the ids unique, or set {group}.columns.problem_id to a column of unique ids"
            )
        seen[key] = where
        yield (
            {"answer": "", "reference": ""}
            | text
            | {"tests": tests, "teacher": text.get("teacher", "").strip() or None}
        )


def _tests(value: Any, where: str, column: str) -> bytes | None:
    """A cell of tests, packed. None for a null or an empty text."""
    try:
        match value:
            case None | "" | b"":
                return None
            case bytes():
                return Tests.unpack(value).pack()
            case str():
                value = json.loads(value)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}")
        if "kind" not in value:
            return taco.tests_of(value).pack()
        # Parquet fills the fields that a row leaves out with nulls.
        fields: dict[str, Any] = {
            name: field for name, field in value.items() if field is not None and name != "format"
        }
        fields.setdefault("compare", "tokens" if fields["kind"] == "stdio" else "equal")
        return Tests(**fields).pack()
    except (ValueError, TypeError) as e:
        raise UserError(
            f"{where}: {column} holds no tests ({e}): give an object with inputs and outputs (lists of one length), "
            'and for a function fn_name, or {"kind": "stdio" or "function", "inputs", "outputs", "entry_point"}'
        ) from e


def _text(value: Any, where: str, column: str) -> str:
    """A cell as text: a number as it is written, a null as "" (which `problem` and `answer` may not be)."""
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as e:  # JSON can spell half a surrogate pair
                raise UserError(f"{where}: {column} holds {value[e.start]!r}, which is no text: fix that row") from e
            return value
        case None:
            return ""
        case float() if math.isnan(value):  # how pandas writes a null
            return ""
        case bool():
            pass
        case int() | float() | Decimal():
            return str(value)
    hint = ""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        hint = ": it is a conversation, so write the user's message to a column of its own"
    raise UserError(f"{where}: {column} holds a {type(value).__name__}, expected text or a number{hint}")
