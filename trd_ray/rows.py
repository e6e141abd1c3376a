"""The rows that flow through the stream: one Arrow schema, of which each stage fills more columns.

    Problem -> Rollout (y_o) -> Refined (y_r) -> Example (what the learner trains on)

A response with its verdict is one struct, TRAJECTORY: y_o, y_r and each evaluation sample are of that type. The
engine's token ids are the truth. The text is for verifiers and people, and is never encoded again to train on.

The same schema is written to `rows/step-NNNNNN.parquet` in the run directory and to a corpus, so it has a version:

    4    y_o and y_r are structs
    3    a column for each of their fields (y_o_ids, y_o_text, ...)
    2    like 3, and steps count from 0

    Parquet files of any of these -> RowFiles -> upgrade() -> rows of version 4

A column that a file lacks reads as null, and a column that this schema lacks is left out. So a later column, or a later
field of a trajectory, needs no new version.

In the driver a step's rows stay one table. `light` gives its numbers, and `dicts` its token ids as NumPy slices of the
table's buffers: no id becomes a Python object.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from trd_ray.errors import UserError

SCHEMA_VERSION = 4
_VERSION_KEY = "trd_ray.rows"

_IDS = pa.list_(pa.int32())

TRAJECTORY = pa.struct(
    [
        pa.field("ids", _IDS),
        pa.field("logprobs", pa.list_(pa.float32())),  # the sampled tokens', at temperature 1
        pa.field("text", pa.string()),
        pa.field("finish", pa.string()),  # "stop" | "length" | "abort"
        pa.field("version", pa.int32()),  # oldest policy version that sampled any of its tokens
        pa.field("engine", pa.string()),
        pa.field("start_s", pa.float64()),  # Unix time at which the request was admitted, and how long it took
        pa.field("seconds", pa.float32()),
        # The verdict, null until there is one.
        pa.field("passed", pa.bool_()),
        pa.field("score", pa.float32()),
        pa.field("extracted", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("feedback", pa.string()),  # what a refiner may be told about the verdict
        pa.field("verify_start_s", pa.float64()),
        pa.field("verify_seconds", pa.float32()),
        # What each of several verifiers gave, null where one judged. No map: data sets of Hugging Face have none.
        pa.field("parts", pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("score", pa.float64())]))),
    ]
)

PROBLEM = [
    pa.field("problem_id", pa.string(), nullable=False),
    pa.field("problem", pa.string(), nullable=False),
    pa.field("answer", pa.string(), nullable=False),  # what the verifier compares with, "" for code
    pa.field("reference", pa.string(), nullable=False),  # y*, "" when the data has none
    pa.field("tests", pa.binary()),  # code: verify.code.tests.Tests, packed; null for mathematics
    pa.field("turns", pa.string()),  # JSON list of {role, content}: what was said before the problem; null: nothing
    pa.field("extra", pa.string()),  # JSON object: the data's columns that are none of these; null: there are none
    pa.field("source", pa.string()),  # the name in data.sources; null: there is one source
    pa.field("teacher", pa.string()),  # the name of who refines and teaches the row; null: there is one
]

# One row is one rollout of one problem, admitted to one step.
ORDER = [
    pa.field("row", pa.int64(), nullable=False),  # position in the whole run's order, the key of a row
    pa.field("step", pa.int32(), nullable=False),  # steps count from 0 in the stream, from 1 in a file
    pa.field("epoch", pa.int32(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),  # which of the rollouts of this problem in this epoch
    pa.field("seed", pa.int64(), nullable=False),  # sampling seed of y_o; the refiner's derives from it
]

ROLLOUT = [pa.field("student_prompt_ids", _IDS), pa.field("y_o", TRAJECTORY)]

REFINED = [
    pa.field("refine_prompt_ids", _IDS),
    pa.field("refine_kept_tokens", pa.int32()),  # of y_o, with which y_r begins (refiner.from=relay)
    pa.field("refine_cut_tokens", pa.int32()),  # tokens cut from y_o, then y*, to fit the refine prompt
    pa.field("refine_candidates", pa.int32()),  # refinements sampled for this rollout
    pa.field("refine_candidates_passed", pa.int32()),
    pa.field("refine_tokens", pa.int32()),  # sampled for all of them
    # Of those whose likelihood under the student was asked for, and of y_o where the teacher read it.
    pa.field("refine_scored_tokens", pa.int32()),
    pa.field("refine_student_logprob", pa.float64()),  # y_r's mean a token under the student, where it was asked for
    pa.field("refine_edited_share", pa.float64()),  # of y_r against y_o, where refiner.max_edited_share is set
    pa.field("y_r", TRAJECTORY),  # null where nothing was refined
]

# Why the row could not be made or judged, which is the fault of its own data; null for every other row.
FAULT = [pa.field("fault", pa.string())]

# Where a person judges (verify.function: review): what is kept until, and after, the verdicts come.
CANDIDATE = pa.struct(
    [
        *TRAJECTORY,
        pa.field("edited_share", pa.float64()),
        pa.field("student_logprob", pa.float64()),
        pa.field("awaited", pa.string()),  # as `review_awaited`
    ]
)
REVIEWED = [
    pa.field("review_waits", pa.int32()),  # responses of the row whose verdict is waited for; null: no person judges it
    pa.field("review_awaited", pa.string()),  # y_o's verdict as it was before a person's (verify.review.settle), JSON
    pa.field("review_candidates", pa.list_(CANDIDATE)),  # the refinements, of which y_r is one once it is chosen
]

EXAMPLE = [
    pa.field("trajectory", pa.string()),  # "y_o" | "y_r" | "reference": what the response below is
    pa.field("train", pa.bool_()),
    pa.field("dropped_because", pa.string()),  # "" when train is true
    pa.field("student_ids", _IDS),  # student view of the prompt
    pa.field("teacher_ids", _IDS),  # teacher view of the prompt; null where no teacher scores the response
    pa.field("response_ids", _IDS),  # as far as it has loss
    pa.field("loss_at", _IDS),  # the places in it of the tokens that have loss; null: all of them
    pa.field("teacher_cut_tokens", pa.int32()),
]

# What the learner found at each token of a response, where it was kept: the trained trajectory under the view it was
# trained with, and others that diagnostics asked for. Lists of equal length, in nats (onset: a probability), whose
# precision is for looking at.
_TOKENS = pa.list_(pa.float16())
SCORED = pa.struct(
    [
        pa.field("trajectory", pa.string()),  # "y_o" | "y_r" | "reference"
        pa.field("view", pa.string()),  # the teacher's, as in teacher.view
        pa.field("trained", pa.bool_()),  # whether the row trained on it
        pa.field("kl", _TOKENS),  # KL(teacher, student) over the vocabulary
        pa.field("student_nll", _TOKENS),
        pa.field("teacher_nll", _TOKENS),
        pa.field("onset", _TOKENS),  # the teacher's probability of words that begin a doubt
    ]
)
DIAGNOSED = [pa.field("scored", pa.list_(SCORED))]

METADATA = {_VERSION_KEY: str(SCHEMA_VERSION)}
_MADE = [*ORDER, *ROLLOUT, *REFINED, *FAULT, *REVIEWED, *EXAMPLE, *DIAGNOSED]

# A row as it is stored: tests and extra can be megabytes a problem, and no reader of a stored row needs them.
_LARGE = ("tests", "extra")
ROW = pa.schema([*(f for f in PROBLEM if f.name not in _LARGE), *_MADE], metadata=METADATA)
# A row in the stream names its problem by the place in the run's table of problems.
IN_STREAM = pa.schema([pa.field("problem_number", pa.int64(), nullable=False), *_MADE], metadata=METADATA)


# What the metrics of a step are counted from: no ids, log-probabilities or texts.
_PLAIN = (
    *("row", "step", "epoch", "source", "teacher", "fault", "train", "dropped_because", "trajectory"),
    *("refine_cut_tokens", "teacher_cut_tokens", "refine_tokens", "refine_scored_tokens", "refine_kept_tokens"),
    *("refine_student_logprob", "refine_edited_share"),
)
_OF_TRAJECTORY = ("finish", "version", "engine", "start_s", "seconds", "passed", "extracted", "detail", "parts")
_OF_VERIFYING = ("verify_start_s", "verify_seconds")


def to_table(rows: list[dict], schema: pa.Schema = ROW) -> pa.Table:
    """A table of the full schema from rows, dicts with any of its columns. Missing columns are null.

    Lone surrogates, which a model's text may hold and Arrow cannot, become question marks.
    """
    cut = [{name: row.get(name) for name in schema.names} for row in rows]
    try:
        return pa.Table.from_pylist(cut, schema=schema)
    except UnicodeEncodeError:
        return pa.Table.from_pylist(list(map(encodable, cut)), schema=schema)


def encodable(value: Any) -> Any:
    """Text whose lone surrogates, which Arrow cannot hold, are question marks; also in a dict or a list of them."""
    if isinstance(value, dict):
        return {name: encodable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [encodable(one) for one in value] if value and isinstance(value[0], dict) else value
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def parts_of(scores: dict[str, float]) -> list[dict[str, Any]] | None:
    """What several verifiers gave, by their names, as a row has it; None for none."""
    return [{"name": name, "score": score} for name, score in scores.items()] or None


def light(table: pa.Table) -> list[dict]:
    """The rows without ids, log-probabilities and texts: what metrics, clock, timeline and warnings read.

    A trajectory has `tokens`, the number of its ids.
    """
    rows = dicts(table, [*_PLAIN, *(f"{y}.{name}" for y in ("y_o", "y_r") for name in _OF_TRAJECTORY + _OF_VERIFYING)])
    for y in ("y_o", "y_r"):
        # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
        lengths = pc.list_value_length(_column(table, f"{y}.ids"))  # pyright: ignore
        for row, tokens in zip(rows, lengths.to_pylist(), strict=True):
            if row[y] is not None:
                row[y]["tokens"] = tokens
    return rows


def dicts(table: pa.Table, columns: Sequence[str]) -> list[dict]:
    """The rows with these columns, named as for `upgrade`; a list is a NumPy slice of the table's buffers."""
    plain = [name for name in columns if "." not in name]
    rows: list[dict] = [{} for _ in range(table.num_rows)]
    for name in plain:
        for row, value in zip(rows, _values(_column(table, name)), strict=True):
            row[name] = value
    for y in dict.fromkeys(name.split(".")[0] for name in columns if "." in name):
        fields = [name.split(".")[1] for name in columns if name.startswith(f"{y}.")]
        there = table[y].is_valid().to_pylist()
        values = zip(*(_values(_column(table, f"{y}.{field}")) for field in fields), strict=True)
        for row, exists, of_row in zip(rows, there, values, strict=True):
            row[y] = dict(zip(fields, of_row, strict=True)) if exists else None
    return rows


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    y, _, of_trajectory = name.partition(".")
    return pc.struct_field(table[y], of_trajectory) if of_trajectory else table[y]  # pyright: ignore


def _values(column: pa.ChunkedArray) -> list:
    if not pa.types.is_list(column.type) or pa.types.is_struct(column.type.value_type):
        return column.to_pylist()
    return [ids for chunk in column.chunks for ids in _slices(chunk)]


def _slices(lists: Any) -> list[np.ndarray | None]:
    """The lists of a list array as views of its values, without a copy. None for null."""
    values = lists.values.to_numpy(zero_copy_only=True)
    ends = lists.offsets.to_pylist()
    there = lists.is_valid().to_pylist()
    return [values[a:b] if one else None for a, b, one in zip(ends[:-1], ends[1:], there, strict=True)]


def part(row: dict, y: str, name: str) -> Any:
    """One field of the row's y_o or y_r. None where the row has no such trajectory."""
    return (row.get(y) or {}).get(name)


# Stored rows


def upgrade(table: pa.Table, columns: Sequence[str] = ROW.names) -> pa.Table:
    """Stored rows of any version, with these columns of this version.

    A column is one of ROW's, or one field of a trajectory, such as "y_o.passed".
    """
    schema = pa.schema([_field(name) for name in columns], metadata=METADATA)
    from_0 = version_of(table.schema) < 3
    batches = []
    for batch in table.to_batches():
        arrays = [_array(batch, field) for field in schema]
        if from_0 and "step" in columns:
            at = schema.get_field_index("step")
            # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
            arrays[at] = pc.add(arrays[at], pa.scalar(1, pa.int32()))  # pyright: ignore
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def version_of(schema: pa.Schema) -> int:
    """The version of stored rows. Raises UserError for rows that a newer version of this program wrote."""
    version = int((schema.metadata or {}).get(_VERSION_KEY.encode(), SCHEMA_VERSION))
    if version > SCHEMA_VERSION:
        raise UserError(
            f"these rows are of version {version}, and this program reads versions up to {SCHEMA_VERSION}: read them "
            "with the version of trd_ray that wrote them, or a newer one"
        )
    return version


def _field(name: str) -> pa.Field:
    y, _, of_trajectory = name.partition(".")
    return pa.field(name, TRAJECTORY.field(of_trajectory).type) if of_trajectory else ROW.field(y)


def _array(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    y, _, of_trajectory = field.name.partition(".")
    if of_trajectory:
        return _part(batch, y, TRAJECTORY.field(of_trajectory))
    if field.type == TRAJECTORY:
        return _trajectory(batch, y)
    found = batch[y] if y in batch.schema.names else pa.nulls(batch.num_rows)
    return found.cast(field.type)


def _trajectory(batch: pa.RecordBatch, y: str) -> pa.Array:
    """A trajectory as one struct. Null where all fields are: separate columns have no other sign of its absence."""
    if y in batch.schema.names and batch[y].type == TRAJECTORY:
        return batch[y]
    parts = [_part(batch, y, field) for field in TRAJECTORY]
    absent = parts[0].is_null()
    for array in parts[1:]:
        absent = pc.and_(absent, array.is_null())  # pyright: ignore
    return pa.StructArray.from_arrays(parts, fields=list(TRAJECTORY), mask=absent)


def _part(batch: pa.RecordBatch, y: str, field: pa.Field) -> pa.Array:
    """One field of a trajectory, from its struct or from a column of its own."""
    found = pa.nulls(batch.num_rows)
    if f"{y}_{field.name}" in batch.schema.names:
        found = batch[f"{y}_{field.name}"]
    elif y in batch.schema.names and batch[y].type.get_field_index(field.name) >= 0:
        found = pc.struct_field(batch[y], field.name)  # pyright: ignore
    return found.cast(field.type)


class RowFiles:
    """Parquet files of rows, of any versions, as one table. Only what is asked for is read.

    Raises UserError for a file of a newer version, pyarrow.ArrowInvalid or OSError for a file that cannot be read.
    """

    def __init__(self, files: Iterable[Path | str]):
        schemas = {str(file): _schema(file) for file in files}
        # Neighbours of one schema are read together.
        self._groups = [
            ds.dataset(group := list(alike), schema=schemas[group[0]], format="parquet")
            for _, alike in groupby(schemas, key=lambda file: schemas[file].serialize().to_pybytes())
        ]

    def count_rows(self) -> int:
        return sum(group.count_rows() for group in self._groups)

    def tables(self, columns: Sequence[str] = ROW.names, where: pc.Expression | None = None) -> Iterator[pa.Table]:
        """The rows in order, a few at a time, as `columns` (see `upgrade`).

        `where` chooses rows by `row`, their number, which is the same in every version.
        """
        for group in self._groups:
            for batch in group.scanner(columns=_stored(group.schema, columns), filter=where).to_batches():
                if batch.num_rows:
                    read = pa.Table.from_batches([batch])
                    yield upgrade(read.replace_schema_metadata(group.schema.metadata), columns)

    def to_table(self, columns: Sequence[str] = ROW.names, where: pc.Expression | None = None) -> pa.Table:
        return pa.concat_tables([upgrade(ROW.empty_table(), columns), *self.tables(columns, where)])


def _schema(file: Path | str) -> pa.Schema:
    schema = ds.dataset(str(file), format="parquet").schema
    try:
        version_of(schema)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None
    return schema


def _stored(schema: pa.Schema, columns: Sequence[str]) -> dict[str, pc.Expression]:
    """What to read from files of this schema for `columns`. A field of a struct gets the name that it had as a column.

    The number of a row is always read, so that no table is without columns.
    """
    found = {"row": pc.field("row")}
    for name in columns:
        y, _, of_trajectory = name.partition(".")
        if y not in schema.names:
            flat = [f"{y}_{field.name}" for field in TRAJECTORY if of_trajectory in ("", field.name)]
            found |= {column: pc.field(column) for column in flat if column in schema.names}
        elif not of_trajectory:
            found[y] = pc.field(y)
        elif schema.field(y).type.get_field_index(of_trajectory) >= 0:
            found[f"{y}_{of_trajectory}"] = pc.field(y, of_trajectory)
    return found
