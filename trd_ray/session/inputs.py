"""Everything that is read and checked before anything starts: models, data, lengths, placement.

recipe -> resolved models, problems, held-out problems, the placement for the cluster at hand -> Inputs, or a UserError
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trd_ray import models
from trd_ray.config import JUDGE_POOL, Each, ModelConfig, Recipe, VerifyConfig, keys_of
from trd_ray.errors import Faults, UserError
from trd_ray.preflight import checks, compilers, placement
from trd_ray.preflight.held_out import held_out_sets, key_of
from trd_ray.preflight.judge_fits import judge_fits
from trd_ray.preflight.machines import Machine, this_machine
from trd_ray.preflight.overlap import asked_texts
from trd_ray.problems.corpus import open_corpus
from trd_ray.problems.load import ProblemSet, has_tests, held_out_verify, load_problems
from trd_ray.problems.mixture import shares
from trd_ray.problems.set_aside import SetAside
from trd_ray.problems.spool import Spool, where
from trd_ray.problems.whose import with_teachers_of, without_problems
from trd_ray.record.ledger import DROPPED
from trd_ray.record.metrics import metric_names, require_metric
from trd_ray.sandbox import Sandbox
from trd_ray.session.cluster import Connection, is_local
from trd_ray.session.glance import warn_at_first_look
from trd_ray.session.person_needed import PERSON_JUDGES, require_no_person
from trd_ray.stream.held import require_held
from trd_ray.trackers.installed import require_trackers
from trd_ray.verify.fitting import ROWS_TO_FIT, require_functions
from trd_ray.wordings import ITEM_FORM

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 10.0
ROWS_TO_JUDGE = 100  # whose prompts for the judge are measured


@dataclass
class Inputs:
    job: placement.Job
    recipe: Recipe  # every length that the job uses is a number; `trd evaluate` has lengths for each benchmark
    student_path: str  # resolved; the initial weights
    teacher_path: Each[str]
    problems: pa.Table | None  # None: the data is a corpus, or there is none
    held_out: pa.Table | None  # those of evaluation.path
    total_steps: int
    findings: checks.Findings
    student: models.ModelFacts
    teacher: Each[models.ModelFacts]
    set_aside: list[SetAside] = field(default_factory=list)  # the problems that are left out
    notes: list[str] = field(default_factory=list)  # about the sources, for the person who starts the run
    spool: Spool | None = None  # where the tests of `problems` lie, for the shelf; None where there are none
    held_out_sets: dict[str, pa.Table] = field(default_factory=dict)  # those of evaluation.sets
    judge_path: str = ""  # resolved
    judge: models.ModelFacts | None = None  # where a verifier is the judge and has rows to judge

    @property
    def runs_code(self) -> bool:
        tables = (self.problems, self.held_out, *self.held_out_sets.values())
        return self.recipe.verify.may_run_code and any(table is not None and has_tests(table) for table in tables)

    def rows_in_step(self, step: int) -> int:
        """How many rows the step has: all steps are full, except the only step of a run with fewer problems."""
        planned = self.findings.length
        per_step = self.recipe.rollouts_per_step
        return min(per_step, planned.rows - step * per_step) if planned else per_step

    def compiles_kernels(self, cluster: Sequence[Machine]) -> bool:
        actors = placement.resources(self.recipe, any(machine.gpus for machine in cluster), self.job)
        on_gpus = {name for name, actor in actors.items() if actor.gpus}
        return compilers.compiles_kernels(self.recipe, bool(on_gpus & self.recipe.engines.keys()), "learner" in on_gpus)

    def plan(
        self, cluster: Sequence[Machine], gpu_gib: float | None = None, ranks: int | None = None
    ) -> placement.Placement:
        """`ranks` is the number of the learner's, by default the largest of the recipe's that fits."""
        return placement.plan(
            self.recipe if ranks is None else self.recipe.with_ranks(ranks),
            self.student,
            self.teacher,
            cluster,
            judge=self.judge,
            job=self.job,
            gpu_gib=gpu_gib,
            longest_sequence_tokens=self.findings.longest_sequence_tokens,
        )


def prepare(
    recipe: Recipe,
    job: placement.Job = "train",
    gpu_gib: float | None = None,
    connection: Connection | None = None,
    base_is_given: bool = False,
) -> Inputs:
    """Read and check everything. Warns of what works but is rarely meant.

    `gpu_gib` is the memory of a GPU, as `placement.plan` takes it. TACO's references are chosen on the nodes of the
    cluster behind `connection`; without one, or if it is local, in threads. `base_is_given` says that the score from
    before training comes from elsewhere, whatever evaluation.before says. Raises UserError for anything that cannot
    work, with a sentence for each fault that can be found.
    """
    r = recipe
    require_no_person(r, job, _evaluated(r, job))
    _warn(r, job, base_is_given)
    faults = Faults()
    data = findings = corpus = None
    with faults:
        if job == "refine" or (job == "train" and r.data.source == "problems"):
            data = _problems(r, connection)
        elif job == "train":
            corpus = _corpus(r)
    held_out = held_out_sets(r, _evaluated(r, job), faults)
    problems = data.table if data else None
    sets = {name: found.table for name, found in held_out.items()}
    evaluated = sets.pop("", None)
    shapes = _judged_by(r, faults, problems, evaluated, sets)
    with faults:
        _require_records(r, job)
    student, teachers = _models(r, faults)
    judge, judged = _judge(r, job, faults, problems if problems is not None else evaluated)
    if student and len(teachers) == len(r.by_teacher):
        facts = {name: teacher.facts for name, teacher in teachers.items()}
        with faults:
            findings = checks.check(
                r, problems=problems, evaluation=evaluated, sets=sets, student=student.facts, teacher=facts,
                corpus=corpus, student_tokenizer=student.tokenizer, trains=job == "train",
                teacher_tokenizer={name: teacher.tokenizer for name, teacher in teachers.items()},
            )  # fmt: skip
        if faults.sentences and is_local(r):  # a cluster is asked only when everything else is well
            here, asked = [this_machine(r)], judge.facts if judge else None
            faults.add(*placement.plan(r, student.facts, facts, here, judge=asked, job=job, gpu_gib=gpu_gib).reasons)
    faults.require_none()
    assert student and findings
    if problems is not None:
        problems = _without(problems, findings.too_long)
        warn_at_first_look(r, problems, job)
    steps = findings.length.steps if findings.length else corpus.steps if corpus else 0
    read = [found for found in (data, *held_out.values()) if found]
    set_aside = [one for found in read for one in found.set_aside]
    notes = [*shapes, *judged, *(note for one in read for note in one.notes), *_notes(findings.recipe, job, problems)]
    return Inputs(
        job, findings.recipe, student.path, {name: teacher.path for name, teacher in teachers.items()}, problems,
        evaluated, steps, findings, student.facts, {name: teacher.facts for name, teacher in teachers.items()},
        [*set_aside, *findings.too_long], notes, data.spool if data else None, sets,
        judge.path if judge else "", judge.facts if judge else None,
    )  # fmt: skip


def _evaluated(r: Recipe, job: placement.Job) -> list[str]:
    """The names of the held-out sets that the job needs."""
    evaluates = job == "evaluate" or (job == "train" and r.evaluation.in_training)
    return (r.evaluation.names or [""]) if evaluates else []


def _notes(recipe: Recipe, job: placement.Job, problems: pa.Table | None) -> list[str]:
    """What a person should know before it starts."""
    notes = _shares(recipe, problems)
    notes += without_problems(problems, list(recipe.teachers)) if problems is not None else []
    return notes + ([PERSON_JUDGES] if recipe.verify.asks_a_person and job == "refine" else [])


def _shares(recipe: Recipe, problems: pa.Table | None) -> list[str]:
    """A note about each source's part of the rows, where there are several."""
    return [shares(recipe, problems)] if problems is not None and recipe.data.sources else []


def _require_records(r: Recipe, job: placement.Job) -> None:
    """Raise UserError if a tracker is not installed, or if no step has what checkpoint.best names."""
    if job != "evaluate":
        require_trackers(r.trackers)
    if job == "train":
        _require_best(r)


def _require_best(r: Recipe) -> None:
    """Raise UserError if checkpoint.best names nothing that a step measures. Own code is not known yet."""
    best = r.checkpoint.best or DROPPED
    if not best.startswith((DROPPED, *(["own/"] if r.metrics.function else []))):
        sources = [one.name for one in r.data.sources]
        weighted = () if r.verify.by or r.verify.by_source else r.verify.functions
        require_metric(best, metric_names(sources, r.evaluation, r.teachers, weighted))


def fixed_numbers(recipe: Recipe, *pools: str) -> list[str]:
    """A note for each of these pools that has bounds, in a program that does not move between them."""
    found = {pool: recipe.engines[pool].bounds for pool in pools}
    return [
        f"{keys_of(pool)}.replicas are bounds, between which only `trd train` and `trd refine` move: the number of "
        f"engines of the {pool} stays at {bounds.start}"
        for pool, bounds in found.items()
        if bounds.min < bounds.max
    ]


def _warn(r: Recipe, job: placement.Job, base_is_given: bool) -> None:
    guards = [name for name, one in r.evaluation.sets.items() if one.guard]
    if job == "train" and guards and r.evaluation.in_training and not (r.evaluation.before or base_is_given):
        logger.warning(
            "evaluation.sets.%s is a guard, but with evaluation.before=false there is no score from before training to "
            "compare with: set evaluation.before=true",
            guards[0],
        )
    refines = any(one.teacher.view == "refine" for one in r.by_teacher.values())
    if job == "train" and r.train.trajectory == "y_o" and refines and r.loss.has_teacher:
        logger.warning(
            "train.trajectory=y_o with teacher.view=refine shows the teacher the very attempt that it scores; the "
            "baselines of the paper score y_o with teacher.view=vanilla"
        )
    if job == "train" and r.loss.divergence == "reverse_kl" and r.stream.max_staleness != 0:
        logger.warning(
            "loss.divergence=reverse_kl with stream.max_staleness=%s trains on rollouts of older weights, which "
            "forward KL tolerates and reverse KL does not (arXiv:2606.24143): set stream.max_staleness=0",
            r.stream.max_staleness,
        )


@dataclass(frozen=True)
class _Loaded:
    """What can be known of a model without its weights."""

    path: str  # resolved
    facts: models.ModelFacts
    tokenizer: Any


def _models(r: Recipe, faults: Faults) -> tuple[_Loaded | None, dict[str, _Loaded]]:
    """Student and teachers: one object for what is one model; a model that cannot be used is left out."""
    student = None
    teachers: dict[str, _Loaded] = {}
    with faults:
        student = _model(r.student, r.student.path)
    for name, one in r.by_teacher.items():
        with faults:
            found = _model(one.teacher, one.teacher.path) if one.teacher.path else student
            if found:
                teachers[name] = student if student and found.path == student.path else found
    return student, teachers


def _judge(
    r: Recipe, job: placement.Job, faults: Faults, problems: pa.Table | None
) -> tuple[_Loaded | None, list[str]]:
    """The judge, where the job asks one, and a line on how it is asked."""
    with faults:
        if JUDGE_POOL in placement.pools(r, job) and r.judge.path:
            found = _model(r.judge, r.judge.path)
            rows = problems.slice(0, ROWS_TO_JUDGE).drop_columns(["tests"]).to_pylist() if problems is not None else []
            its = [row for row in rows if r.verify.may_ask_judge(row["source"])]
            return found, [judge_fits(r, found.facts, found.tokenizer, its)]
    return None, []


def with_judge(inputs: Inputs, problems: pa.Table) -> Inputs:
    """An evaluation's inputs with the judge, where one may be asked about these problems.

    Raises UserError for one that cannot be asked.
    """
    r, faults = inputs.recipe, Faults()
    if not any(map(r.verify.may_ask_judge, problems["source"].unique().to_pylist())):
        return inputs
    judge, notes = _judge(r, inputs.job, faults, problems)
    faults.require_none()
    assert judge
    notes = [*inputs.notes, *notes, *fixed_numbers(r, JUDGE_POOL)]
    return replace(inputs, judge_path=judge.path, judge=judge.facts, notes=notes)


def _model(model: ModelConfig, path: str) -> _Loaded:
    resolved = models.resolve(path, model.revision)
    tokenizer = models.tokenizer(resolved, model.revision, model.trust_remote_code)
    return _Loaded(resolved, models.facts(resolved, model.revision, model.trust_remote_code), tokenizer)


def _without(problems: pa.Table, too_long: Sequence[SetAside]) -> pa.Table:
    left_out = {problem.problem_id for problem in too_long}
    return (
        where(problems, [one not in left_out for one in problems["problem_id"].to_pylist()]) if left_out else problems
    )


def _corpus(recipe: Recipe) -> checks.Corpus:
    corpus = open_corpus(recipe.data.path)
    rows = corpus.count_rows()
    of_a_pass = rows // recipe.rollouts_per_step
    if not of_a_pass:
        raise UserError(
            f"the corpus {recipe.data.path} has {rows} rows, but a step needs {recipe.rollouts_per_step}: lower "
            "rollouts_per_step, or build a larger corpus with jobs/refine.py"
        )
    most = recipe.data.passes * of_a_pass
    steps = min(recipe.steps or most, most)
    trains = min(steps, of_a_pass) * recipe.rollouts_per_step
    require_held(recipe, trains, -(-steps // of_a_pass))
    trained = load_problems(recipe.data, corpus_rows=trains).table
    if recipe.teachers:  # of every row: two teachers may have refined rollouts of one problem
        with_teachers_of(recipe, corpus.to_table(["problem_id", "teacher"], pc.field("row") < trains))
    return checks.Corpus(rows, steps, recipe.rollouts_per_step, list(dict.fromkeys(asked_texts(trained))))


def _problems(recipe: Recipe, connection: Connection | None) -> ProblemSet:
    last = time.monotonic()

    def report(done: int, aside: int, met: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_S:
            last = time.monotonic()
            print(f"choosing references: {done} problems done, {aside} of them set aside", flush=True)

    if recipe.data.format == "taco" and connection is not None:
        connection.require_sandboxes(recipe.verify.sandbox)
    found = load_problems(recipe.data, recipe.verify, progress=report)
    if recipe.data.source == "corpus" and recipe.verify.needs_answers:
        _require_answers(recipe.data.path, found.table)
    return replace(found, table=with_teachers_of(recipe, found.table))


def _require_answers(corpus: str, problems: pa.Table) -> None:
    """Raise UserError where a corpus does not keep what its problems are judged by."""
    lacks = ""
    if any(problem.endswith(ITEM_FORM) for problem in problems["problem"].to_pylist()):
        lacks = "items of reasoning_gym, and a corpus does not keep what their scorers need"
    elif not all(problems["answer"].to_pylist()):
        lacks = "programming problems or others without an answer, and a corpus does not keep their tests"
    if lacks:
        raise UserError(
            f"the corpus {corpus} is of {lacks}: set data.source=problems and data.path to the problems that it was "
            "made of"
        )


def _judged_by(
    r: Recipe, faults: Faults, problems: pa.Table | None, held_out: pa.Table | None, sets: dict[str, pa.Table]
) -> list[str]:
    """What `require_verifier` tells; what is in the way goes to `faults`."""
    with faults:
        require_sandbox(r, problems, held_out, *sets.values())
    with faults:
        tables = {"data.path": problems}
        for name, table in {"": held_out, **sets}.items():
            own = held_out_verify(r.evaluation.of(name), r.verify).chosen
            tables[f"{key_of(name)}.path"] = table if own else None
        return require_verifier(r, tables)
    return []


def require_verifier(recipe: Recipe, tables: dict[str, pa.Table | None]) -> list[str]:
    """A line for each of the user's functions that judge; raises UserError for one that cannot judge these problems."""
    lines: list[str] = []
    faults = Faults()
    for key, table in tables.items():
        if table is not None and recipe.verify.chosen:
            with faults:
                rows = _rows_to_fit(recipe.verify, table.drop_columns(["tests"]))
                lines += [line for line in require_functions(recipe.verify, rows, key) if line not in lines]
    faults.require_none()
    return lines


def _rows_to_fit(verify: VerifyConfig, table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows that functions are compared with, a few at a time: all where a column chooses, else the first ones.

    The sources of a table stand one after another in it, and each may have a function of its own.
    """
    starts = {0, *(pc.index(table["source"], name).as_py() for name in verify.by_source)} - {-1}
    pieces = [table] if verify.by else [table.slice(start, ROWS_TO_FIT) for start in sorted(starts)]
    for piece in pieces:
        for batch in piece.to_batches(max_chunksize=ROWS_TO_FIT):
            yield from batch.to_pylist()


def require_sandbox(recipe: Recipe, *tables: pa.Table | None) -> None:
    """Raise UserError if programs are to run here and cannot; the nodes of a cluster are asked later."""
    if (
        is_local(recipe)
        and recipe.verify.may_run_code
        and any(table is not None and has_tests(table) for table in tables)
    ):
        Sandbox(recipe.verify.sandbox)
