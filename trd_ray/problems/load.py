"""The one door to problems: whatever the source is, a table of problems leaves, with what was set aside and why.

    what sources.read() finds, a column map                 ->  load_problems()   ->  ProblemSet: table of rows.PROBLEM,
    data.format=taco  ->  taco.load()                                                 what was set aside and why,
    data.source=corpus  ->  the problems of its rows                                  notes for the person who reads
    evaluation.path=aime24  ->  benchmarks.load()
    a benchmark, or a file of one's own, on a command line  ->  load_benchmark()  ->  the same, and what is known of it

Texts are in memory, tests on disk (`spool`): the `tests` column of the table is mapped from there, so take rows by
`spool.where`, which keeps them there. Everything wrong with the data is refused here as a UserError that names the
place and the remedy.
"""

from dataclasses import dataclass

import pyarrow as pa

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.problems import benchmarks, taco
from trd_ray.problems.columns import fitting, problems
from trd_ray.problems.corpus import problems_of_corpus
from trd_ray.problems.set_aside import SetAside, begins
from trd_ray.problems.sources import read
from trd_ray.problems.spool import Spool, where
from trd_ray.problems.taco.references import Progress


@dataclass(frozen=True)
class ProblemSet:
    table: pa.Table  # its schema is rows.PROBLEM, its problem_ids are unique
    set_aside: tuple[SetAside, ...] = ()
    notes: tuple[str, ...] = ()  # a sentence each
    benchmark: benchmarks.Benchmark | None = None  # a benchmark's title and source, and how the paper samples it
    spool: Spool | None = None  # where the tests lie, for the shelf; None for what is not trained on

    @property
    def has_tests(self) -> bool:
        return has_tests(self.table)


def has_tests(table: pa.Table) -> bool:
    """Whether a program runs for any of the problems."""
    return table["tests"].null_count < table.num_rows


def load_problems(
    spec: config.DataConfig | config.EvaluationConfig,
    verify: config.VerifyConfig | None = None,
    also_columns: dict[str, str] | None = None,
    *,
    corpus_rows: int | None = None,
    progress: Progress | None = None,
) -> ProblemSet:
    """The problems that `data` or `evaluation` names.

    - `spec.path` is `miniature:train|tune|test`, `word_problems:train|test`, a .jsonl, .json, .parquet, .arrow, .csv
      or .tsv file, a folder or a glob of such files, or a Hugging Face data set, `org/name` or `org/name:config`. For
      `evaluation` it may also be a benchmark's name.
    - `spec.limit` keeps the first rows.
    - `also_columns` maps what `spec.columns` leaves out, as far as the source has these columns: most held-out problems
      have the columns of the training data.
    - `spec.format` taco: the rows are TACO's. Their references are chosen under the limits of `verify` (see
      `taco.load`), and `progress` is told how far that is.
    - `spec.source` corpus: the problems of a corpus, in the order of its rows. `corpus_rows` keeps only the first rows.

    What a row may hold:

    - problem_id: without this column, a hash of the problem's text, which survives appending and reordering. The second
      copy of a text gets the suffix -2.
    - reference: a missing one becomes "". With `without_reference: drop` its problem is set aside.
    - tests: what `Tests.pack()` gave, or an object (in JSON Lines also as its text): the fields of Tests, or TACO's
      input_output. A row with tests needs no answer.

    Raises UserError.
    """
    group = "evaluation" if isinstance(spec, config.EvaluationConfig) else "data"
    verify = verify or config.VerifyConfig()
    if not spec.path:
        raise UserError(f"{group}.path is empty: set it to a file of problems")
    if isinstance(spec, config.EvaluationConfig) and _names_benchmark(spec):
        return load_benchmark(spec.path, spec, verify)
    if isinstance(spec, config.DataConfig):
        if spec.source == "corpus":
            return ProblemSet(problems_of_corpus(spec.path, corpus_rows))
        if spec.format == "taco":
            chosen = taco.load(spec, verify, progress=progress)
            return ProblemSet(chosen.problems, tuple(chosen.set_aside), (f"{spec.path}: {chosen}",), spool=chosen.spool)
        if spec.difficulty:
            raise UserError("data.difficulty selects problems of TACO: set data.format=taco, or leave it out")
    source = read(spec, group)
    if not source.names:
        raise UserError(f"{spec.path} holds no problems: check {group}.path")
    columns = fitting(also_columns or {}, source.names) | spec.columns
    if isinstance(spec, config.DataConfig) and spec.teacher_column:
        if spec.teacher_column not in source.names:
            raise UserError(
                f"data.teacher_column names the column {spec.teacher_column!r}, but {spec.path} has "
                f"{', '.join(source.names)}{config.close_to(spec.teacher_column, source.names)}"
            )
        columns["teacher"] = spec.teacher_column
    table, spool = problems(source, columns, group, str(spec.path), spec.limit)
    if isinstance(spec, config.DataConfig) and spec.without_reference == "drop":
        table, set_aside = _with_reference(table, spec.path)
        return ProblemSet(table, set_aside, spool=spool)
    return ProblemSet(table, spool=spool)


def load_benchmark(
    name: str,
    spec: config.EvaluationConfig,
    verify: config.VerifyConfig | None = None,
    also_columns: dict[str, str] | None = None,
) -> ProblemSet:
    """A benchmark as `benchmarks.load` takes its name, or a file of problems whose columns have usual names.

    `spec` gives the limit and the columns alone. `also_columns` is as in `load_problems`. Raises UserError.
    """
    sandbox = (verify or config.VerifyConfig()).sandbox
    found = benchmarks.load(name, limit=spec.limit, sandbox=sandbox, columns=(also_columns or {}) | spec.columns)
    return ProblemSet(found.problems, found.set_aside, tuple(f"{found.name}: {n}" for n in found.notes), found)


def _names_benchmark(spec: config.EvaluationConfig) -> bool:
    path = spec.path or ""
    return benchmarks.is_name(path) or (spec.format == "auto" and benchmarks.is_word(path))


def _with_reference(table: pa.Table, path: str) -> tuple[pa.Table, tuple[SetAside, ...]]:
    has_reference = [bool(text.strip()) for text in table["reference"].to_pylist()]
    kept = where(table, has_reference)
    if not kept.num_rows:
        raise UserError(
            f"no problem of {path} has a reference, so data.without_reference=drop leaves none: set "
            "data.columns.reference=NAME to the column with them"
        )
    named = table.select(["problem_id", "problem"])
    left_out = named.filter(pa.array([not has for has in has_reference])).to_pylist()
    reason = "no reference, and data.without_reference is drop"
    return kept, tuple(SetAside(row["problem_id"], begins(row["problem"]), reason) for row in left_out)
