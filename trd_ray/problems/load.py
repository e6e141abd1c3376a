"""The one door to problems: whatever the source is, a table of problems leaves, with what was set aside and why.

    what sources.read() finds, a column map                 ->  load_problems()   ->  ProblemSet: table of rows.PROBLEM,
    data.format=taco  ->  taco.load()                                                 what was set aside and why,
    reasoning_gym:FAMILY  ->  gym.items.load()
    data.source=corpus  ->  the problems of its rows                                  notes for the person who reads
    data.sources        ->  each of them, then mixture.joined()
    evaluation.path=aime24  ->  benchmarks.load()
    a benchmark, or a file of one's own, on a command line  ->  load_benchmark()  ->  the same, and what is known of it

Texts are in memory, tests on disk (`spool`): the `tests` column of the table is mapped from there, so take rows by
`spool.where`, which keeps them there. Everything wrong with the data is refused here as a UserError that names the
place and the remedy.
"""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from trd_ray import config
from trd_ray.errors import Faults, UserError
from trd_ray.problems import benchmarks, mixture, taco
from trd_ray.problems.columns import SCHEMA, fitting, problems
from trd_ray.problems.corpus import problems_of_corpus
from trd_ray.problems.gym import family, items
from trd_ray.problems.set_aside import SetAside, begins
from trd_ray.problems.sources import read
from trd_ray.problems.spool import Spool, where
from trd_ray.problems.taco.references import Progress
from trd_ray.wordings import ITEM_FORM


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
    also_arguments: dict[str, Any] | None = None,
    corpus_rows: int | None = None,
    progress: Progress | None = None,
    group: str = "",
) -> ProblemSet:
    """The problems that `data` or `evaluation` names.

    - `spec.path` is `miniature:train|tune|test`, `word_problems:train|test`, a .jsonl, .json, .parquet, .arrow, .csv
      or .tsv file, a folder or a glob of such files, or a Hugging Face data set, `org/name` or `org/name:config`. For
      `evaluation` it may also be a benchmark's name.
    - `spec.limit` keeps the first rows.
    - `also_columns` maps what `spec.columns` leaves out, as far as the source has these columns: most held-out problems
      have the columns of the training data.
    - `reasoning_gym:FAMILY`: the split that `spec.arguments` cut, or `also_arguments` where there are none.
    - `spec.format` taco: the rows are TACO's. Their references are chosen under the limits of `verify` (see
      `taco.load`), and `progress` is told how far that is.
    - `spec.source` corpus: the problems of a corpus, in the order of its rows. `corpus_rows` keeps only the first rows.
    - `spec.sources`: the problems of all of them, one source after another.
    - `group` is what a message calls the keys of `spec`, by default data or evaluation.

    What a row may hold:

    - problem_id: without this column, a hash of the problem's text and of what was said before it, which survives
      appending and reordering. The second copy of a text gets the suffix -2.
    - problem: a text, or a conversation (see `messages`).
    - reference: a missing one becomes "". With `without_reference: drop` its problem is set aside.
    - tests: what `Tests.pack()` gave, or an object (in JSON Lines also as its text): the fields of Tests, or TACO's
      input_output. A row with tests needs no answer, and no
      row does that a function of the user's judges.

    Raises UserError.
    """
    group = group or ("evaluation" if isinstance(spec, config.EvaluationConfig) else "data")
    verify = verify or config.VerifyConfig()
    if not spec.path:
        raise UserError(f"{group}.path is empty: set it to a file of problems")
    if isinstance(spec, config.EvaluationConfig) and _names_benchmark(spec):
        return load_benchmark(spec.path, spec, verify)
    if isinstance(spec, config.DataConfig):
        if spec.source == "corpus":
            return ProblemSet(problems_of_corpus(spec.path, corpus_rows))
        if spec.sources:
            return _mixed(spec, verify, progress)
        if spec.format == "taco":
            chosen = taco.load(spec, verify, progress=progress)
            return ProblemSet(chosen.problems, tuple(chosen.set_aside), (f"{spec.path}: {chosen}",), spool=chosen.spool)
        if spec.difficulty:
            raise UserError("data.difficulty selects problems of TACO: set data.format=taco, or leave it out")
    if family.names_family(spec.path):
        return _generated(spec, group, spec.arguments or also_arguments or {})
    _require_no_arguments(spec, group)
    return _read(spec, verify, also_columns or {}, group)


def _read(
    spec: config.DataConfig | config.EvaluationConfig,
    verify: config.VerifyConfig,
    also_columns: dict[str, str],
    group: str,
) -> ProblemSet:
    source = read(spec, group)
    if not source.names:
        raise UserError(f"{spec.path} holds no problems: check {group}.path")
    columns = fitting(also_columns, source.names) | spec.columns
    if isinstance(spec, config.DataConfig) and spec.teacher_column:
        columns |= _teachers(spec.teacher_column, source.names, str(spec.path), group)
    notes: list[str] = []
    table, spool = problems(source, columns, group, str(spec.path), spec.limit, verify, notes)
    if isinstance(spec, config.DataConfig) and spec.without_reference == "drop":
        table, set_aside = _with_reference(table, spec.path)
        return ProblemSet(table, set_aside, tuple(notes), spool=spool)
    return ProblemSet(table, notes=tuple(notes), spool=spool)


def _teachers(column: str, found: list[str], path: str, group: str) -> dict[str, str]:
    """The map of data.teacher_column. One of several sources may be without it: see `mixture` and `whose`."""
    if column in found or column.split(".")[0] in found:
        return {"teacher": column}
    if group != "data":
        return {}
    raise UserError(
        f"data.teacher_column names the column {column!r}, but {path} has {', '.join(found)}"
        f"{config.close_to(column, found)}"
    )


def _mixed(spec: config.DataConfig, verify: config.VerifyConfig, progress: Progress | None) -> ProblemSet:
    """The problems of data.sources. Raises UserError, which tells of all sources that cannot be read."""
    faults = Faults()
    found: list[tuple[config.SourceConfig, ProblemSet]] = []
    for source in spec.sources:
        own = source.model_dump(include=set(config.DataConfig.model_fields))
        difficulty = spec.difficulty if source.format == "taco" else None
        alone = spec.model_copy(update=own | {"sources": [], "difficulty": difficulty})
        with faults:
            group = f"data.sources[{source.name}]"
            its = _verify_of(source, verify)
            found.append((source, load_problems(alone, its, spec.columns, progress=progress, group=group)))
    faults.require_none()
    if spec.teacher_column and all(one.table["teacher"].null_count == one.table.num_rows for _, one in found):
        raise UserError(
            f"data.teacher_column names the column {spec.teacher_column!r}, which no source of data.sources has: name "
            "another, or leave it out where each source has a teacher of its own"
        )
    table, spool = mixture.joined([(source, one.table) for source, one in found], SCHEMA)
    set_aside = [
        replace(problem, problem_id=mixture.name_in(source, problem.problem_id))
        for source, one in found
        for problem in one.set_aside
    ]
    return ProblemSet(table, tuple(set_aside), tuple(note for _, one in found for note in one.notes), spool=spool)


def _verify_of(source: config.SourceConfig, verify: config.VerifyConfig) -> config.VerifyConfig:
    """What judges the rows of one source: where that compares, they need answers, whatever others have."""
    if source.verify:
        named = verify.chosen.get(source.verify)
        function = named.function if named else source.verify
        own = config.is_own(function) or function in (config.JUDGE, config.REVIEW)
    else:
        own = not verify.has_usual_rows
    return verify if own else verify.built_in()


def load_benchmark(
    name: str,
    spec: config.EvaluationConfig,
    verify: config.VerifyConfig | None = None,
    also_columns: dict[str, str] | None = None,
) -> ProblemSet:
    """A benchmark as `benchmarks.load` takes its name, or a file of problems whose columns have usual names.

    `spec` gives the limit and the columns alone. `also_columns` is as in `load_problems`. Raises UserError.
    """
    found = benchmarks.load(name, limit=spec.limit, verify=verify, columns=(also_columns or {}) | spec.columns)
    return ProblemSet(found.problems, found.set_aside, tuple(f"{found.name}: {n}" for n in found.notes), found)


def held_out_verify(spec: config.EvaluationConfig, verify: config.VerifyConfig) -> config.VerifyConfig:
    """What judges the held-out problems: a benchmark and a family of reasoning_gym have their own rules, whatever
    function a run has.
    """
    return verify.built_in() if _names_benchmark(spec) or family.names_family(spec.path) else verify


def held_out_task(spec: config.EvaluationConfig, verify: config.VerifyConfig, problem: str, has_tests: bool) -> str:
    """Whose default wordings fit what judges a held-out problem, by its text."""
    judged = held_out_verify(spec, verify)
    if has_tests and not judged.named_for(None):
        return "code"
    return judged.task_of(None, problem.endswith(ITEM_FORM))


def _generated(spec: config.DataConfig | config.EvaluationConfig, group: str, arguments: dict[str, Any]) -> ProblemSet:
    found = items.load(family.cut(str(spec.path), spec.split, arguments, group), group, spec.limit)
    return ProblemSet(found.problems, found.set_aside)


def _require_no_arguments(spec: config.DataConfig | config.EvaluationConfig, group: str) -> None:
    if spec.arguments:
        raise UserError(
            f"{group}.arguments are for {family.PREFIX}FAMILY, but {group}.path is {spec.path}: leave them out"
        )


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
