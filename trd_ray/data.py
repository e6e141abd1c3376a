"""Problem sources to one Arrow schema, and the order in which a run meets the problems.

    what sources.read() finds, a column map      ->  load_problems()  ->  table of rows.PROBLEM
                               (data.format=taco ->  taco.load())
    table, seed, sizes                           ->  order()          ->  rows of rows.PROBLEM + rows.ORDER

Everything wrong with the data is refused here as a UserError that names the place and the remedy. The order is a pure
function of its arguments, so a resumed run asks for its tail and gets what it would have met.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray import config, rows, taco
from trd_ray.errors import UserError
from trd_ray.sources import Row, read
from trd_ray.verify.tests import Tests

SCHEMA = pa.schema(rows.PROBLEM)

# Column names that data sets at large use; they only feed the suggestion, nothing is mapped unasked.
_USUAL = {
    "problem": ["question", "prompt", "query", "input", "instruction"],
    "answer": ["final_answer", "expected_answer", "target", "label", "ground_truth"],
}


def load_problems(
    spec: config.Data | config.Evaluation,
    verify: config.Verify | None = None,
    also_columns: dict[str, str] | None = None,
) -> pa.Table:
    """The problems that `data` or `evaluation` names, as a table of rows.PROBLEM with unique problem_ids.

    `spec.path` is `miniature:train|tune|test`, `word_problems:train|test`, a .jsonl, .json, .parquet, .arrow, .csv or
    .tsv file, a folder or a glob of such files, or a Hugging Face data set, `org/name` or `org/name:config`. Without a
    problem_id column the id is a hash of the problem's text, which survives appending and reordering; the second copy
    of a text gets the suffix -2. `spec.limit` keeps the first rows. A missing reference becomes "", or with
    `without_reference: drop` its problem is left out. `also_columns` maps what `spec.columns` leaves out, as far as the
    source has these columns: held-out problems are mostly laid out as the training data.

    A row's `tests` are what `Tests.pack()` gave, or an object (in JSON Lines also as its text): the fields of Tests,
    or TACO's input_output. A row with tests needs no answer. With `spec.format` taco the rows are TACO's, whose
    references are chosen under the limits of `verify` (see `taco.load`, which also tells what it set aside).
    Raises UserError.
    """
    group = "evaluation" if isinstance(spec, config.Evaluation) else "data"
    if not spec.path:
        raise UserError(f"{group}.path is empty: set it to a file of problems")
    if isinstance(spec, config.Data) and spec.format == "taco":
        return taco.load(spec, verify or config.Verify()).problems
    if isinstance(spec, config.Data) and spec.difficulty:
        raise UserError("data.difficulty selects problems of TACO: set data.format=taco, or leave it out")
    found, names = read(spec, group)
    if not found:
        raise UserError(f"{spec.path} holds no problems: check {group}.path")
    columns = fitting(also_columns or {}, names) | spec.columns
    table = problems(found[: spec.limit], columns, names, group, str(spec.path))
    if isinstance(spec, config.Data) and spec.without_reference == "drop":
        table = table.filter(pa.array([bool(text.strip()) for text in table["reference"].to_pylist()]))
        if not table.num_rows:
            raise UserError(
                f"no problem of {spec.path} has a reference, so data.without_reference=drop leaves none: set "
                "data.columns.reference=NAME to the column with them"
            )
    return table


def problems(found: list[Row], mapped: dict[str, str], names: list[str], group: str, source: str) -> pa.Table:
    """Rows as they were read, and a map of our column names to theirs, as a table of rows.PROBLEM."""
    return _table(found, _columns(mapped, names, group, source), group)


def fitting(mapped: dict[str, str], found: list[str]) -> dict[str, str]:
    """The part of a column map whose columns the source has."""
    return {name: column for name, column in mapped.items() if column in found}


def _columns(mapped: dict[str, str], found: list[str], group: str, source: str) -> dict[str, str]:
    """Our name -> the source's column, for the columns that the source has."""
    known = SCHEMA.names
    names = {name: name for name in known if name in found} | mapped
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


def _table(found: list[Row], names: dict[str, str], group: str) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    seen: dict[str, str] = {}  # problem_id -> where
    copies: dict[str, int] = {}
    for where, row in found:
        text = {name: _text(row.get(column), where, column) for name, column in names.items() if name != "tests"}
        tests = _tests(row.get(names["tests"]), where, names["tests"]) if "tests" in names else None
        for name in text.keys() - {"reference"}:
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
        for name, column in columns.items():
            column.append(tests if name == "tests" else text.get(name, ""))
    return pa.table(columns, schema=SCHEMA)


def _tests(value: Any, where: str, column: str) -> bytes | None:
    """A cell of tests, packed; a null or an empty text as None."""
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
    """A cell as text: numbers as they are written, a null as "" (which `problem` and `answer` refuse)."""
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as e:  # JSON can spell half a surrogate pair
                raise UserError(f"{where}: {column} holds {value[e.start]!r}, which is no text: mend that row") from e
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


@dataclass(frozen=True)
class Length:
    """How long a run is: its steps, its rows, and the rows of a last, partial step that one pass leaves out."""

    steps: int
    rows: int
    dropped_rows: int


def length(problems: int, *, rollouts_per_step: int, samples_per_problem: int = 1, steps: int | None = None) -> Length:
    """`steps` full steps over as many epochs as they take; by default one pass over the problems.

    The loop expects full steps, so one pass drops a partial last step, unless it is the only one.
    """
    if steps is not None:
        return Length(steps, steps * rollouts_per_step, 0)
    available = problems * samples_per_problem
    if available < rollouts_per_step:
        return Length(1, available, 0)
    full = available // rollouts_per_step
    return Length(full, full * rollouts_per_step, available % rollouts_per_step)


def order(
    table: pa.Table,
    *,
    seed: int,
    rollouts_per_step: int,
    samples_per_problem: int = 1,
    shuffle: bool = True,
    steps: int | None = None,
    start_step: int = 0,
) -> Iterator[dict[str, Any]]:
    """The rows of a run from `start_step` on: the columns of rows.PROBLEM and rows.ORDER as a dict each.

    Row r belongs to step r // rollouts_per_step and is sample r % samples_per_problem of its problem in its epoch.
    Every epoch meets every problem once, in an order of its own that depends on (seed, epoch) alone; a step may span
    two epochs. A row's sampling seed is a hash of (seed, r). Where the order ends, see `length`.
    """
    problems = table.to_pylist()
    rows_in_all = length(
        len(problems), rollouts_per_step=rollouts_per_step, samples_per_problem=samples_per_problem, steps=steps
    ).rows
    ranking: tuple[int, np.ndarray] = (-1, np.empty(0))
    for row in range(start_step * rollouts_per_step, rows_in_all):
        visit, sample_index = divmod(row, samples_per_problem)
        epoch, place = divmod(visit, len(problems))
        if ranking[0] != epoch:
            ranking = (epoch, _ranking(seed, epoch, len(problems), shuffle))
        yield {
            **problems[ranking[1][place]],
            "row": row,
            "step": row // rollouts_per_step,
            "epoch": epoch,
            "sample_index": sample_index,
            "seed": seed_of_row(seed, row),
        }


def _ranking(seed: int, epoch: int, problems: int, shuffle: bool) -> np.ndarray:
    if not shuffle:
        return np.arange(problems)
    # NumPy promises the raw stream of a bit generator for ever, but not what Generator.permutation makes of it.
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(problems), kind="stable")


def seed_of_row(seed: int, row: int) -> int:
    """63 bits, which fit Arrow's int64 and vLLM's sampling seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()) >> 1
