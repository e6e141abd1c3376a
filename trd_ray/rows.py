"""The rows that flow through the stream, one flat Arrow schema that each stage fills further.

    Problem -> Rollout (y_o) -> Refined (y_r) -> Example (what the learner trains on)

Token ids come from the engine and are the truth: text is for verifiers and people, and is never re-encoded to train on.
The same schema is written to `rows/step-NNNNNN.parquet` in the run directory and to a corpus, so it carries a version.
"""

import pyarrow as pa

SCHEMA_VERSION = 3

_IDS = pa.list_(pa.int32())

PROBLEM = [
    pa.field("problem_id", pa.string(), nullable=False),
    pa.field("problem", pa.string(), nullable=False),
    pa.field("answer", pa.string(), nullable=False),  # what the verifier compares with, "" for code
    pa.field("reference", pa.string(), nullable=False),  # y*, "" when the data has none
    pa.field("tests", pa.binary()),  # code: verify.tests.Tests, packed; null for mathematics
]

# One row is one rollout of one problem, admitted to one step.
ORDER = [
    pa.field("row", pa.int64(), nullable=False),  # position in the whole run's order, the key of a row
    pa.field("step", pa.int32(), nullable=False),  # from 0 in the stream, from 1 as it is stored
    pa.field("epoch", pa.int32(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),  # which of the rollouts of this problem in this epoch
    pa.field("seed", pa.int64(), nullable=False),  # sampling seed of y_o; the refiner's derives from it
]


def _generation(prefix: str) -> list[pa.Field]:
    return [
        pa.field(f"{prefix}_ids", _IDS),
        pa.field(f"{prefix}_logprobs", pa.list_(pa.float32())),  # of the sampled tokens, at temperature 1
        pa.field(f"{prefix}_text", pa.string()),
        pa.field(f"{prefix}_finish", pa.string()),  # "stop" | "length" | "abort"
        pa.field(f"{prefix}_version", pa.int32()),  # oldest policy version that sampled any of its tokens
        pa.field(f"{prefix}_engine", pa.string()),
        pa.field(f"{prefix}_start_s", pa.float64()),  # Unix time the request was admitted, and how long it took
        pa.field(f"{prefix}_seconds", pa.float32()),
        pa.field(f"{prefix}_passed", pa.bool_()),
        pa.field(f"{prefix}_score", pa.float32()),
        pa.field(f"{prefix}_extracted", pa.string()),
        pa.field(f"{prefix}_detail", pa.string()),
        pa.field(f"{prefix}_feedback", pa.string()),  # what a refiner may be told of the verdict
        pa.field(f"{prefix}_verify_start_s", pa.float64()),
        pa.field(f"{prefix}_verify_seconds", pa.float32()),
    ]


ROLLOUT = [pa.field("student_prompt_ids", _IDS), *_generation("y_o")]

REFINED = [
    pa.field("refine_prompt_ids", _IDS),
    pa.field("refine_cut_tokens", pa.int32()),  # tokens cut from y_o, then y*, to fit the refine prompt
    pa.field("refine_candidates", pa.int32()),  # refinements sampled for this rollout
    pa.field("refine_candidates_passed", pa.int32()),
    *_generation("y_r"),
]

EXAMPLE = [
    pa.field("trajectory", pa.string()),  # "y_o" | "y_r": what the response below is
    pa.field("train", pa.bool_()),
    pa.field("dropped_because", pa.string()),  # "" when train is true
    pa.field("student_ids", _IDS),  # student view of the prompt
    pa.field("teacher_ids", _IDS),  # teacher view of the prompt
    pa.field("response_ids", _IDS),
    pa.field("teacher_cut_tokens", pa.int32()),
]

CANDIDATES = pa.field(  # the refinements of one rollout, between the refine stage and the selection of y_r
    "candidates",
    pa.list_(
        pa.struct(
            [
                pa.field("ids", _IDS),
                pa.field("logprobs", pa.list_(pa.float32())),
                pa.field("text", pa.string()),
                pa.field("finish", pa.string()),
                pa.field("version", pa.int32()),
                pa.field("engine", pa.string()),
                pa.field("start_s", pa.float64()),
                pa.field("seconds", pa.float32()),
            ]
        )
    ),
)

_FIELDS = [*PROBLEM, *ORDER, *ROLLOUT, *REFINED, *EXAMPLE]

# In the stream, and as it is stored: tests can be megabytes a problem, and nothing that reads a stored row needs them.
IN_STREAM = pa.schema(_FIELDS, metadata={"trd_ray.rows": str(SCHEMA_VERSION)})
ROW = pa.schema([f for f in _FIELDS if f.name != "tests"], metadata=IN_STREAM.metadata)
WITH_CANDIDATES = IN_STREAM.append(CANDIDATES)


def to_table(rows: list[dict], schema: pa.Schema = ROW) -> pa.Table:
    """Rows (dicts with any subset of the columns) to a table of the full schema; missing columns are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
