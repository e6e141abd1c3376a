"""Rows as a source has them become a table of rows.PROBLEM, by a map of our column names to the source's.

    a source, a map  ->  problems()  ->  table of rows.PROBLEM, with unique problem_ids, and the spool of its tests

A column of the map may be a field of a column, with a dot: `reward_model.ground_truth`. A problem may be a conversation
(see `messages`). What no column of ours takes goes into `extra` as JSON, under the data's own names, where a function
of the user's or verify.by may read it; else nothing of it is kept.

Texts are kept in memory. Tests are checked, packed and written to disk row by row, so they never pile up in memory.

Everything wrong with a row is refused here as a UserError that names the place and the remedy.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa

from trd_ray import rows
from trd_ray.config import VerifyConfig
from trd_ray.errors import UserError
from trd_ray.problems import messages, schemas, taco
from trd_ray.problems.extra import Leftovers
from trd_ray.problems.sources import Row, Source
from trd_ray.problems.spool import Spool, spooled
from trd_ray.verify.code.tests import Tests

SCHEMA = pa.schema(rows.PROBLEM)
OURS = ("problem_id", "problem", "answer", "reference", "tests")  # taken from columns of these names
MAY_BE_MAPPED = (*OURS, "teacher")
FIRST_ROWS = 64  # which tell what the columns hold
_NULLABLE = {field.name for field in SCHEMA if field.nullable}

# Column names that many data sets use. They only feed the suggestion: what is mapped unasked stands in `schemas`.
_USUAL = {
    "problem": ["question", "prompt", "query", "input", "instruction"],
    "answer": ["final_answer", "expected_answer", "target", "label", "ground_truth"],
}


def problems(
    source: Source,
    mapped: dict[str, str],
    group: str,
    path: str,
    limit: int | None = None,
    verify: VerifyConfig | None = None,
    notes: list[str] | None = None,
) -> tuple[pa.Table, Spool]:
    """A table of rows.PROBLEM from the first `limit` rows of a source and a map of our column names to its own.

    `group` are the keys of the recipe that a message names, `path` is the source's name. Each row needs an answer or
    tests, unless `verify` has it judged by a function of the user's own or by a person. Into `notes` goes what a person
    should know. Raises UserError.
    """
    verify = verify or VerifyConfig()
    answered = verify.needs_answers
    first = _first(source)
    known = schemas.recognised(source.names, first, mapped)
    names = _columns(mapped, known, source.names, first, group, path, answered)
    nested = not answered or "." in names.get("answer", "")
    leftovers = Leftovers(_taken(names, answered)) if verify.reads_columns else None
    found = _Rows(names, group, nested, answered, leftovers)
    table, spool = spooled(found.problems(islice(source.rows(), limit)), SCHEMA)
    if notes is not None:
        notes += [f"{path} {known.note}"] if known and known.columns.keys() - mapped.keys() else []
        notes += [f"{path}: {note}" for note in leftovers.notes()] if leftovers else []
    return table, spool


def _first(source: Source) -> dict[str, Any]:
    """The first value of each column among the first rows: one row may leave out what the others have."""
    found: dict[str, Any] = {}
    for _, row in islice(source.rows(), FIRST_ROWS):
        found |= {name: value for name, value in row.items() if found.get(name) is None}
    return found


def fitting(mapped: dict[str, str], found: list[str]) -> dict[str, str]:
    """The part of a column map whose columns the source has."""
    return {name: column for name, column in mapped.items() if column in found or column.split(".")[0] in found}


def _taken(names: dict[str, str], answered: bool) -> set[str]:
    """The columns that need not stand in `extra` too: a function of the user's finds the others by their own names.

    Such a function gets an answer as it was, before it became text.
    """
    taken = {column for ours, column in names.items() if ours == column or ours in ("problem", "tests")}
    return taken if answered else taken - {"answer"}


def _columns(
    mapped: dict[str, str],
    known: schemas.Schema | None,
    found: list[str],
    first: dict[str, Any],
    group: str,
    source: str,
    answered: bool,
) -> dict[str, str]:
    """Our name -> the source's column, for the columns that the source has."""
    ours = SCHEMA.names if set(SCHEMA.names) <= set(found) else OURS  # all: a table that was ours before
    names = {name: name for name in ours if name in found} | (known.columns if known else {}) | mapped
    faults = []
    for name, column in mapped.items():
        if name not in MAY_BE_MAPPED:
            faults.append(f"unknown key {group}.columns.{name}: the columns are {', '.join(MAY_BE_MAPPED)}")
        elif column not in found and (amiss := _no_field(column, found, first)):
            faults.append(f"{group}.columns.{name} names the column {column!r}{amiss[0]}, but {source} has {amiss[1]}")
    missing = [
        name
        for name in ("problem", "answer")
        if name not in names and not (name == "answer" and ("tests" in names or not answered))
    ]
    if missing:
        keys = " ".join(f"{group}.columns.{_likely(name, found)}" for name in missing)
        which = f"column {missing[0]!r}" if len(missing) == 1 else "columns 'problem' and 'answer'"
        faults.append(f"{source} has no {which}, only {', '.join(found)}: set {keys}")
    if faults:
        raise UserError("; ".join(faults))
    return names


def _no_field(column: str, found: list[str], first: dict[str, Any]) -> tuple[str, str] | None:
    """A hint and what there is in place of a column that is missing; None for a field of a column that is there."""
    top, dot, below = column.partition(".")
    there = found
    if dot and top in found:
        within, _, last = below.rpartition(".")
        there = list(schemas.fields(_cell(first, f"{top}.{within}" if within else top)))
        if last in there:
            return None
        there = [f"{column.removesuffix(last)}{name}" for name in there] or [f"no fields in {top}"]
    close = difflib.get_close_matches(column, there, n=1)
    return f" (did you mean {close[0]}?)" if close else "", ", ".join(there)


def _cell(row: dict[str, Any], column: str) -> Any:
    """The value of a column, or of a field of it, None where the row has none."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for name in column.split("."):
        value = schemas.fields(value).get(name)
    return value


def _likely(name: str, found: list[str]) -> str:
    """What to set a missing column to, as `name=COLUMN`."""
    if name == "answer" and "input_output" in found:
        return "tests=input_output"
    usual = [u for u in _USUAL[name] if u in found]
    return f"{name}={[*usual, *difflib.get_close_matches(name, found, n=1), 'NAME'][0]}"


@dataclass(frozen=True)
class _Rows:
    """Rows of one source as problems."""

    names: dict[str, str]  # our name -> the column
    group: str
    nested: bool  # an answer may be a list, an object or a truth value, and becomes JSON
    answered: bool
    leftovers: Leftovers | None  # None where nothing reads the other columns, which may be large

    def problems(self, found: Iterable[Row]) -> Iterator[dict[str, Any]]:
        names, group = self.names, self.group
        seen: dict[str, str] = {}  # problem_id -> where
        copies: dict[str, int] = {}
        for where, row in found:
            text = self._texts(row, where)
            tests = _tests(_cell(row, names["tests"]), where, names["tests"]) if "tests" in names else None
            for name in ("problem_id", "problem", "answer"):
                unneeded = name not in text or (name == "answer" and (tests or not self.answered))
                if not unneeded and not (text[name] or "").strip():
                    raise UserError(
                        f"{where}: {names[name]} is empty: fill it in, remove that row, or set {group}.columns.{name} "
                        "to another column"
                    )
            if "answer" not in text and not tests and self.answered:
                raise UserError(f"{where}: {names['tests']} is empty, and there is no answer: give the row one of them")
            if "problem_id" not in text:
                asked = f"{text['turns'] or ''}{text['problem']}"
                digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
                copies[digest] = copies.get(digest, 0) + 1
                text["problem_id"] = digest if copies[digest] == 1 else f"{digest}-{copies[digest]}"
            key = str(text["problem_id"])
            if key in seen:
                raise UserError(
                    f"the {names.get('problem_id', 'problem_id')} {key!r} stands twice, in {seen[key]} and in {where}: "
                    f"make the ids unique, or set {group}.columns.problem_id to a column of unique ids"
                )
            seen[key] = where
            extra = self.leftovers.of(row) if self.leftovers else None
            yield {"answer": "", "reference": "", "extra": extra} | text | {"tests": tests}

    def _texts(self, row: dict[str, Any], where: str) -> dict[str, str | None]:
        """Every column of ours but tests and extra; what was said before the problem is in `turns`."""
        text: dict[str, str | None] = {"turns": None}
        reply = ""
        for name, column in self.names.items():
            value = _cell(row, column)
            if name in ("problem", "reference") and (talk := messages.messages_in(value)):
                if name == "reference":
                    text[name] = messages.reply_of(talk, where, column)
                    continue
                said = messages.conversation(talk, where, column)
                text |= {"problem": said.problem, "turns": messages.written(said.turns)}
                reply = said.reply
            elif name == "answer" and self.nested and isinstance(value, list | dict | bool):
                text[name] = _text(json.dumps(value, ensure_ascii=False, default=str), where, column)
            elif name != "tests":
                text[name] = _text(value, where, column)
        if reply and not text.get("reference"):
            text["reference"] = reply
        return text | {name: (text[name] or "").strip() or None for name in text.keys() & _NULLABLE}


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
    except (ValueError, TypeError, RecursionError) as e:
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
        hint = ": it is a conversation, which only the problem and the reference may be"
    raise UserError(f"{where}: {column} holds a {type(value).__name__}, expected text or a number{hint}")
