"""Everything that is read and checked before anything starts: models, data, lengths, placement.

recipe -> resolved models, problems, held-out problems, the placement for the cluster at hand -> Inputs, or a UserError
"""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as ds

from trd_ray import benchmarks, models, placement, preflight, taco
from trd_ray.config import Recipe
from trd_ray.data import load_problems
from trd_ray.errors import UserError
from trd_ray.run.cluster import cluster, is_local, require_sandboxes
from trd_ray.stream.feed import open_corpus
from trd_ray.verify.sandbox import Sandbox

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 10.0


@dataclass
class Inputs:
    job: placement.Job
    recipe: Recipe
    student_path: str  # resolved; the initial weights
    teacher_path: str
    problems: pa.Table | None  # None: the data is a corpus, or there is none
    held_out: pa.Table | None
    total_steps: int
    findings: preflight.Findings
    student: models.ModelFacts
    teacher: models.ModelFacts
    set_aside: taco.Taco | None = None  # where the data is TACO's

    @property
    def runs_code(self) -> bool:
        return _has_tests(self.problems, self.held_out)

    def rows_in_step(self, step: int) -> int:
        """All steps are full, but for the only step of a run with fewer problems."""
        planned, per_step = self.findings.length, self.recipe.rollouts_per_step
        return min(per_step, planned.rows - step * per_step) if planned else per_step

    def plan(self, cluster: dict[str, float], gpu_gib: float | None = None) -> placement.Plan:
        return placement.plan(
            self.recipe,
            self.student,
            self.teacher,
            cluster,
            job=self.job,
            gpu_gib=gpu_gib,
            longest_sequence_tokens=self.findings.longest_sequence_tokens,
        )


def prepare(recipe: Recipe, job: placement.Job = "train") -> Inputs:
    """Raises UserError for anything that cannot work, and warns of what works but is rarely meant."""
    r = recipe
    if job == "train" and r.train.trajectory == "y_o" and r.teacher.view == "refine":
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
    problems = held_out = chosen = corpus = None
    if job == "refine" or (job == "train" and r.data.source == "problems"):
        if r.data.format == "taco":
            chosen = _taco(r)
            problems = chosen.problems
        else:
            problems = load_problems(r.data)
    elif job == "train":
        corpus = _corpus(r)
    if job == "evaluate" or (job == "train" and r.evaluation.in_training):
        held_out = _held_out(r)
    require_sandbox(r, problems, held_out)
    student_path = models.resolve(r.student.path, r.student.revision)
    teacher_path = models.resolve(r.teacher.path, r.teacher.revision) if r.teacher.path else student_path
    student_tokenizer = models.tokenizer(student_path, r.student.revision, r.student.trust_remote_code)
    student = models.facts(student_path, r.student.revision, r.student.trust_remote_code)
    if teacher_path == student_path:
        teacher, teacher_tokenizer = student, student_tokenizer
    else:
        teacher_tokenizer = models.tokenizer(teacher_path, r.teacher.revision, r.teacher.trust_remote_code)
        teacher = models.facts(teacher_path, r.teacher.revision, r.teacher.trust_remote_code)
    findings = preflight.check(
        r,
        problems=problems,
        evaluation=held_out,
        student=student,
        teacher=teacher,
        student_tokenizer=student_tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        corpus=corpus,
        trains=job == "train",
    )
    steps = findings.length.steps if findings.length else corpus.steps if corpus else 0
    return Inputs(job, r, student_path, teacher_path, problems, held_out, steps, findings, student, teacher, chosen)


def _corpus(recipe: Recipe) -> preflight.Corpus:
    dataset = open_corpus(recipe.data.path)
    rows = dataset.count_rows()
    steps = rows // recipe.rollouts_per_step
    if not steps:
        raise UserError(
            f"the corpus {recipe.data.path} has {rows} rows, but a step needs {recipe.rollouts_per_step}: lower "
            "rollouts_per_step, or build a larger corpus with jobs/refine.py"
        )
    steps = min(recipe.steps or steps, steps)
    trained = dataset.to_table(columns=["problem"], filter=ds.field("row") < steps * recipe.rollouts_per_step)
    return preflight.Corpus(rows, steps, recipe.rollouts_per_step, trained["problem"].unique().to_pylist())


def _held_out(recipe: Recipe) -> pa.Table:
    evaluation, path = recipe.evaluation, str(recipe.evaluation.path)
    if benchmarks.is_name(path) or (evaluation.format == "auto" and benchmarks.is_word(path)):
        return benchmarks.load(path, limit=evaluation.limit, sandbox=recipe.verify.sandbox).problems
    return load_problems(evaluation, also_columns=recipe.data.columns)


def _taco(recipe: Recipe) -> taco.Taco:
    """On a cluster all of its nodes choose references; here threads do, before anything is started."""
    last = time.monotonic()

    def report(done: int, aside: int, met: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_S:
            last = time.monotonic()
            print(f"choosing references: {done} problems done, {aside} of them set aside", flush=True)

    with ExitStack() as stack:
        if not is_local(recipe):
            stack.enter_context(cluster(recipe))
            require_sandboxes(recipe.verify.sandbox)
        chosen = taco.load(recipe.data, recipe.verify, progress=report)
    print(f"{recipe.data.path}: {chosen}", flush=True)
    return chosen


def require_sandbox(recipe: Recipe, *tables: pa.Table | None) -> None:
    """UserError where programs are to run here and cannot; the nodes of a cluster are asked later."""
    if is_local(recipe) and _has_tests(*tables):
        Sandbox(recipe.verify.sandbox)


def _has_tests(*tables: pa.Table | None) -> bool:
    return any(table is not None and table["tests"].null_count < table.num_rows for table in tables)
