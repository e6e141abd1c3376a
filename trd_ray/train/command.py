"""Two jobs, from a recipe to what it leaves behind: train and refine (the third is trd_ray.evaluate.command).

Each checks everything first (models, data, placement, run directory), then starts Ray and engines, and stops them
however it ends. Exit codes: 0 done, 1 failed, 2 the user can mend it, 128 + n stopped by signal n (training leaves a
checkpoint to resume from).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import ray
from rich.console import Console
from rich.table import Table

from trd_ray.config import Recipe, dump, stored
from trd_ray.errors import UserError
from trd_ray.preflight import placement
from trd_ray.preflight.lengths import carried
from trd_ray.problems.set_aside import write_set_aside
from trd_ray.record import warnings
from trd_ray.record.claim import require_lasting
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.ledger import facts_of_rows, row_metrics
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import first_and_last, summarise
from trd_ray.score import stats
from trd_ray.session.cluster import cluster, is_local, require_sandboxes
from trd_ray.session.endings import told
from trd_ray.session.inputs import Inputs, prepare
from trd_ray.session.quiet import ray_apart
from trd_ray.session.session import Session
from trd_ray.session.stop import StopSignals
from trd_ray.train.loop import train_run
from trd_ray.train.rollouts import start_feed

# "auto" begins a run where there is none, goes on with one, and is content with one that is done.
Resume = Literal["no", "required", "auto"]


def dry_run(recipe: Recipe, job: placement.Job, gpu_gib: float | None = None) -> int:
    """Print the resolved recipe, the data, the actors with their memory, and whether the cluster at hand holds them."""
    inputs = prepare(recipe, job, gpu_gib)
    if is_local(recipe):
        plan = inputs.plan(placement.local_cluster(recipe), gpu_gib)
    else:
        with cluster(recipe) as resources:
            plan = inputs.plan(resources, gpu_gib)
    print(f"{dump(inputs.recipe)}\n{inputs.findings}\n\n{placement.render(plan)}")
    return 0 if plan.fits else 2


def train(recipe: Recipe, resume: Resume = "no") -> int:
    require_lasting(recipe.directory)
    inputs = prepare(_to_resume(recipe, resume))
    recipe, steps = inputs.recipe, inputs.total_steps
    with _claimed(inputs, resume) as (directory, begun), told(directory.path, "train"):
        done, folder = (directory.resume_point() if begun else None) or (0, None)
        scored = (directory.path / "evaluation" / "trained.json").exists()
        if begun and (
            done > steps or (done == steps and (scored or not (recipe.evaluation.path and recipe.evaluation.after)))
        ):
            return _already_done(directory, f"the run in {directory.path} has done its {steps} steps", resume)
        _rewind(directory, done, recipe.checkpoint.every_steps, resume)
        with _session(inputs, directory, steps, done) as session:
            session.display.phase("starting engines and learner")
            session.start(student_path=inputs.student_path, version=0)
            train_run(session, done, folder)
    _report(directory)
    return 0


def refine(recipe: Recipe, resume: Resume = "no") -> int:
    """Build a corpus: sample, verify, refine and verify every problem once, and keep all of it as `rows/`."""
    if not recipe.refines:
        raise UserError(f"train.trajectory={recipe.train.trajectory} makes no refinements: set train.trajectory=y_r")
    require_lasting(recipe.directory)
    inputs = prepare(_to_resume(recipe, resume), "refine")
    steps = inputs.total_steps
    with _claimed(inputs, resume) as (directory, begun), told(directory.path, "refine"):
        done = len(directory.read_metrics()) if begun else 0
        if begun and done >= steps:
            return _already_done(directory, f"the corpus in {directory.path} is complete ({steps} steps)", resume)
        directory.rewind(done)
        with _session(inputs, directory, steps, done) as session:
            session.display.phase("starting engines")
            session.start(student_path=inputs.student_path, version=0)
            session.wait_until_started()
            refine_run(session, done)
    _report(directory)
    return 0


def refine_run(session: Session, done: int) -> None:
    """The corpus from the step `done` on; a step is recorded once its rows are written."""
    inputs, directory = session.inputs, session.directory
    feed = start_feed(session, start_step=done, version=0)
    session.display.phase("refining")
    try:
        with Metrics(directory.path, inputs.total_steps, done) as metrics:
            for step in range(done, inputs.total_steps):
                session.look()  # with rows ready, nothing else would
                rows = feed.take(step, session.look, inputs.rows_in_step(step))
                directory.write_rows(step + 1, rows)
                record = row_metrics(rows)
                metrics.log(step + 1, record)
                session.display.step({"step": step + 1} | record)
                if step == done:
                    session.warn(warnings.of_rows(facts_of_rows(rows), session.recipe))
    finally:
        feed.close()
        summarise(directory)


def _to_resume(recipe: Recipe, resume: Resume) -> Recipe:
    """A run that goes on keeps the lengths that it began with, where its recipe leaves them to the data and models."""
    place = recipe.directory / "recipe.yaml"
    return carried(recipe, stored(place)) if resume != "no" and place.is_file() else recipe


@contextmanager
def _claimed(inputs: Inputs, resume: Resume) -> Iterator[tuple[RunDirectory, bool]]:
    """The run directory, and whether it holds a run that was begun; nothing is made if the placement does not fit."""
    recipe = inputs.recipe
    with ExitStack() as stack:
        local = is_local(recipe)
        resources = placement.local_cluster(recipe) if local else stack.enter_context(cluster(recipe))
        placement.require(inputs.plan(resources))
        if inputs.runs_code and not local:
            require_sandboxes(recipe.verify.sandbox)
        begun = resume == "required" or (resume == "auto" and (recipe.directory / "recipe.yaml").is_file())
        directory = RunDirectory.create(recipe.directory, recipe, begun)
        stack.callback(directory.release)
        if inputs.set_aside:
            write_set_aside(directory.path / "set_aside.jsonl", inputs.set_aside)
        yield directory, begun


@contextmanager
def _session(inputs: Inputs, directory: RunDirectory, steps: int, done: int) -> Iterator[Session]:
    """Ray, unless the claim needed it, and a session on it; everything is stopped when the block is left."""
    recipe = inputs.recipe
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        display = stack.enter_context(Display(steps, done=done))
        stack.enter_context(ray_apart(directory.path / "logs" / "ray.log"))
        if is_local(recipe):
            display.phase("starting Ray")
            resources = stack.enter_context(cluster(recipe))
        else:
            resources = ray.cluster_resources()
        stop.install()  # again: Ray has put handlers of its own there
        session = Session(inputs, directory, display, stop, resources)
        try:
            yield session
        finally:
            display.phase("stopping")
            session.close()


def _rewind(directory: RunDirectory, done: int, every_steps: int, resume: Resume) -> None:
    """Move aside what is done again. A run that must have had checkpoints is begun anew only where it is asked for."""
    lines = directory.read_metrics()
    if lines and "lr" not in lines[0]:
        raise UserError(
            f"{directory.path} holds a corpus that `trd refine` made: set run_dir to a new place, and to train on the "
            f"corpus data.source=corpus data.path={directory.path}"
        )
    recorded = len(lines)
    if done == 0 and recorded > 2 * every_steps and resume == "auto":
        raise UserError(
            f"the run in {directory.path} has recorded {recorded} steps, but checkpoints/ there holds none, though one "
            f"is written every {every_steps}: put them back, or say --resume (without auto) to begin again, which "
            "moves the recorded steps to rewound/"
        )
    if again := directory.rewind(done):
        print(f"going on from step {done}: {again} steps recorded after it are done again, and kept in rewound/")


def _already_done(directory: RunDirectory, what: str, resume: Resume) -> int:
    if resume != "auto":
        raise UserError(f"{what}: raise steps to go on")
    print(f"{what}: nothing is left to do")
    _report(directory)
    return 0


def _report(directory: RunDirectory) -> None:
    """What the run did, the scores and where everything lies, for the person who started the job."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)  # a log file has no width to wrap at
    summary = directory.path / "summary.md"
    if summary.exists():
        headline = summary.read_text().split("\n## ")[0].partition("\n")[2]
        console.print(f"{headline.strip()}\n", markup=False)
    scores = directory.read_evaluations()
    if scores:
        header, *lines = stats.table(first_and_last(scores))
        table = Table(*header, box=None, pad_edge=False)
        for line in lines:
            table.add_row(*line)
        console.print(table, "\npercent, with 95% intervals", sep="")
    console.print(f"everything is in {directory.path}", soft_wrap=True, markup=False)
