"""The one door to problems: whatever the source, a table of problems leaves.

    what sources.read() finds, a column map      ->  load_problems()  ->  table of rows.PROBLEM
                               (data.format=taco ->  taco.load())

Everything wrong with the data is refused here as a UserError that names the place and the remedy.
"""

import pyarrow as pa

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.problems import taco
from trd_ray.problems.columns import fitting, problems
from trd_ray.problems.sources import read


def load_problems(
    spec: config.DataConfig | config.EvaluationConfig,
    verify: config.VerifyConfig | None = None,
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
    group = "evaluation" if isinstance(spec, config.EvaluationConfig) else "data"
    if not spec.path:
        raise UserError(f"{group}.path is empty: set it to a file of problems")
    if isinstance(spec, config.DataConfig) and spec.format == "taco":
        return taco.load(spec, verify or config.VerifyConfig()).problems
    if isinstance(spec, config.DataConfig) and spec.difficulty:
        raise UserError("data.difficulty selects problems of TACO: set data.format=taco, or leave it out")
    found, names = read(spec, group)
    if not found:
        raise UserError(f"{spec.path} holds no problems: check {group}.path")
    columns = fitting(also_columns or {}, names) | spec.columns
    table = problems(found[: spec.limit], columns, names, group, str(spec.path))
    if isinstance(spec, config.DataConfig) and spec.without_reference == "drop":
        table = table.filter(pa.array([bool(text.strip()) for text in table["reference"].to_pylist()]))
        if not table.num_rows:
            raise UserError(
                f"no problem of {spec.path} has a reference, so data.without_reference=drop leaves none: set "
                "data.columns.reference=NAME to the column with them"
            )
    return table
