"""Two jobs, from a recipe to what it leaves behind: train and refine (the third is trd_ray.evaluate.job).

Each checks everything first (models, data, placement, run directory), then starts Ray and engines, and stops them
however it ends. Exit codes: 0 done, 1 failed, 2 the user can mend it, 128 + n stopped by signal n (training leaves a
checkpoint to resume from).
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trd_ray import placement
from trd_ray.analyse.ledger import row_metrics
from trd_ray.analyse.summary import first_and_last, write_summary
from trd_ray.config import Recipe, dump
from trd_ray.errors import UserError
from trd_ray.evaluate import stats
from trd_ray.run.cluster import cluster, is_local, require_sandboxes
from trd_ray.run.directory import RunDirectory
from trd_ray.run.display import Display
from trd_ray.run.loop import Session, Training, start_feed
from trd_ray.run.metrics import Metrics
from trd_ray.run.prepare import Inputs, prepare
from trd_ray.run.stop import StopSignals


def dry_run(recipe: Recipe, job: placement.Job, gpu_gib: float | None = None) -> int:
    """Print the resolved recipe, the data, the actors with their memory, and whether the cluster at hand holds them."""
    inputs = prepare(recipe, job)
    if is_local(recipe):
        plan = inputs.plan(placement.local_cluster(recipe), gpu_gib)
    else:
        with cluster(recipe) as resources:
            plan = inputs.plan(resources, gpu_gib)
    print(f"{dump(recipe)}\n{inputs.findings}\n\n{placement.render(plan)}")
    return 0 if plan.fits else 2


def train(recipe: Recipe, resume: bool = False) -> int:
    inputs = prepare(recipe)
    steps = inputs.total_steps
    if resume:
        checkpoint = RunDirectory(recipe.directory).resume_point()
        done, folder = checkpoint or (0, None)
        scored = (recipe.directory / "evaluation" / "trained.json").exists()
        if done > steps or (done == steps and (scored or not (recipe.evaluation.path and recipe.evaluation.after))):
            raise UserError(f"the run in {recipe.directory} has done its {steps} steps: raise steps to go on")
    else:
        done, folder = 0, None
    with _job(inputs, lambda: RunDirectory.create(recipe.directory, recipe, resume), steps, done) as session:
        session.directory.rewind(done)
        session.display.phase("starting engines and learner")
        session.start(student_path=inputs.student_path, version=0)
        train_run(session, done, folder)
    _report(session.directory)
    return 0


def train_run(session: Session, done: int, checkpoint: Path | None) -> None:
    """Train from the step `done` to the end, and evaluate, on a session whose pools run or start.

    `checkpoint` holds the state after `done` steps, None for the initial weights. Raises what ended the run early, once
    a checkpoint is written.
    """
    evaluation, held_out = session.recipe.evaluation, session.inputs.held_out
    training, feed = Training(session, done, checkpoint), None
    try:
        training.trainer.start()
        session.wait_until_started()
        if checkpoint and not training.offline:
            training.sync()  # engines begin with the initial weights
        if checkpoint:
            training.evaluate_missed()
            if done == training.total_steps:
                return
        # Before the evaluation, so that the stages start, and the first step's rows are sampled, meanwhile.
        feed = start_feed(session, start_step=done, version=training.served)
        training.watch()  # engines that served another run get this one's weights
        if held_out is not None and evaluation.before and not checkpoint:
            session.evaluate("base", 0, 0, held_out)
        session.display.phase("training")
        training.run(feed)
    except BaseException:
        with contextlib.suppress(Exception):  # a learner that failed itself has nothing to save
            training.checkpoint()
        raise
    finally:
        if feed is not None:
            feed.close()
        training.close()
        with contextlib.suppress(Exception):  # of a run that recorded nothing yet
            write_summary(session.directory)


def refine(recipe: Recipe, resume: bool = False) -> int:
    """Build a corpus: sample, verify, refine and verify every problem once, and keep all of it as `rows/`."""
    if not recipe.refines:
        raise UserError(f"train.trajectory={recipe.train.trajectory} makes no refinements: set train.trajectory=y_r")
    inputs = prepare(recipe, "refine")
    directory, steps = recipe.directory, inputs.total_steps
    done = len(list((directory / "rows").glob("step-*.parquet"))) if resume else 0
    if resume and done >= steps:
        raise UserError(f"the corpus in {directory} is complete ({steps} steps): raise steps to add to it")
    with _job(inputs, lambda: RunDirectory.create(directory, recipe, resume), steps, done) as session:
        session.display.phase("starting engines")
        session.start(student_path=inputs.student_path, version=0)
        session.wait_until_started()
        feed = start_feed(session, start_step=done, version=0)
        session.display.phase("refining")
        with Metrics(session.directory.path, steps, done) as metrics:
            for step in range(done, steps):
                rows = feed.take(step, session.look, inputs.rows_in_step(step))
                session.directory.write_rows(step, rows)
                record = row_metrics(rows)
                metrics.log(step, record)
                session.display.step({"step": step} | record)
        write_summary(session.directory)
    _report(session.directory)
    return 0


@contextmanager
def _job(inputs: Inputs, claim: Callable[[], RunDirectory], steps: int, done: int = 0) -> Iterator[Session]:
    """Check the placement, claim the run directory, start Ray; everything is stopped when the block is left."""
    recipe = inputs.recipe
    with ExitStack() as stack:
        local = is_local(recipe)
        resources = placement.local_cluster(recipe) if local else stack.enter_context(cluster(recipe))
        placement.require(inputs.plan(resources))
        if inputs.runs_code and not local:
            require_sandboxes(recipe.verify.sandbox)
        directory = claim()
        stack.callback(directory.release)
        if inputs.set_aside and inputs.set_aside.set_aside:
            inputs.set_aside.write_set_aside(directory.path / "set_aside.jsonl")
        stop = stack.enter_context(StopSignals())
        display = stack.enter_context(Display(steps, done=done))
        if local:
            display.phase("starting Ray")
            resources = stack.enter_context(cluster(recipe))
        stop.install()  # again: Ray has put handlers of its own there
        session = Session(inputs, directory, display, stop, resources)
        try:
            yield session
        finally:
            display.phase("stopping")
            session.close()


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
