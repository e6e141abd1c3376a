"""Two jobs, from a recipe to the files that they leave: train and refine (the third is trd_ray.evaluate.command).

    recipe -> prepare, require, claim (trd_ray.session.beginning) -> plan: what is left -> engines -> steps -> report

Exit codes: 0 done, 1 failed, 2 the user can fix it, 128 + n stopped by signal n (training leaves a checkpoint to resume
from).
"""

import time
from collections.abc import Callable
from functools import partial

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.diagnostics.signal_metrics import step_metrics
from trd_ray.errors import UserError
from trd_ray.preflight import placement
from trd_ray.preflight.sharing import sharing
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.ledger import row_metrics
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import summarise
from trd_ray.report.written import report as report_html
from trd_ray.rows import light
from trd_ray.session.beginning import Beginning, begin
from trd_ray.session.cluster import Connection
from trd_ray.session.dry import DryRun
from trd_ray.session.estimated import cost_of
from trd_ray.session.inputs import Inputs, prepare
from trd_ray.session.last_words import beating
from trd_ray.session.pausing import Pausing
from trd_ray.session.scaling import Scaling, with_kept_numbers
from trd_ray.session.session import Session
from trd_ray.train import report
from trd_ray.train.alarming import Alarming
from trd_ray.train.bad_rows import BadRows
from trd_ray.train.loop import train_run
from trd_ray.train.own_hooks import Hooks
from trd_ray.train.plan import Resume, is_begun, mirror_of, plan, require_refinements, seems_done, to_resume
from trd_ray.train.reviewing import Reviewing, is_reviewed
from trd_ray.train.rollouts import start_feed


def dry_run(recipe: Recipe, job: placement.Job, asked: DryRun | None = None) -> int:
    """Print the resolved recipe, the data, the actors with their memory, and whether the cluster at hand holds them."""
    asked = asked or DryRun()
    Hooks.of(recipe)  # code that cannot be loaded is refused here too
    with Connection(recipe) as connection:
        inputs = prepare(recipe, job, asked.gpu_gib, connection)
        placed = inputs.plan(connection.machines(), asked.gpu_gib)
    notes = filter(None, [*inputs.notes, sharing(inputs.recipe, job)])
    cost = cost_of(inputs, placed, asked.costs)
    return asked.show(inputs.recipe, list(notes), str(inputs.findings), placed, cost)


def run(recipe: Recipe, job: placement.Job = "train", resume: Resume = "no") -> int:
    """Train, or refine to a corpus; returns 0, or raises what ended it early."""
    if job == "refine":
        require_refinements(recipe)
    hooks = Hooks.of(recipe)
    if job == "refine" and is_reviewed(recipe):
        resume = "auto"  # who has judged repeats the command, and what is complete may still have verdicts to read
    with begin(job, recipe.directory, recipe) as beginning:
        mirrored = mirror_of(recipe, resume)
        inputs = prepare(to_resume(recipe, resume, mirrored), job, connection=beginning.connection)
        recipe = inputs.recipe
        ahead = mirrored is not None and mirrored.is_ahead
        goes_on = is_begun(recipe, resume) or ahead
        done = not ahead and seems_done(inputs, resume)
        if not done:
            # Who began a run had the nodes for it: those that are not there are about to come.
            beginning.require(inputs, wait_s=recipe.cluster.wait_for_nodes_s if goes_on else 0.0)
        if mirrored and ahead and resume != "no":
            mirrored.restore(say=print)
        begun = is_begun(recipe, resume)
        directory = RunDirectory.create(recipe.directory, recipe, begun)
        if begun and not done:
            inputs = _with_its_engines(inputs, directory, beginning)
        beginning.claimed(directory, inputs)
        left = plan(inputs, directory, begun, resume, has_mirror=mirrored is not None)
        if not left.finished:
            _rewind(directory, left.done, job)
        reviewing = Reviewing(directory, recipe)
        if job == "refine" and begun:
            reviewing.read_back()  # before anything of it is mirrored
        if mirrored:
            beginning.mirror_to(mirrored.place, directory, recipe, left.done)
        if left.finished:
            print(f"{left.finished}: nothing is left to do")
            beginning.finish_mirror()
        else:
            with beginning.session(inputs, directory, Display(inputs.total_steps, done=left.done)) as session:
                session.display.phase("starting engines and learner" if job == "train" else "starting engines")
                learner_first = job == "train" and recipe.takes_turns
                session.start(student_path=inputs.student_path, version=0, learner_first=learner_first)
                with Scaling(session) as scaling:
                    if job == "train":
                        train_run(session, left.done, left.checkpoint, scaling.after_step, hooks)
                    else:
                        tracked = session.followers.during("refine", left.done, session.door.look)
                        with tracked, hooks.during(session):
                            refine_run(session, left.done, scaling.after_step, hooks)
    report.show(directory)
    if job == "refine" and (told := reviewing.told()):
        print(told)
    return 0


def _with_its_engines(inputs: Inputs, directory: RunDirectory, beginning: Beginning) -> Inputs:
    """The inputs of a run that goes on, with the numbers of engines that it had, if they still fit."""
    kept = with_kept_numbers(inputs, directory.path)
    try:
        beginning.require(kept)
    except UserError as e:
        print(f"going on with the recipe's numbers of engines, since those that the run had do not fit: {e}")
        return inputs
    return kept


def _rewind(directory: RunDirectory, done: int, job: placement.Job) -> None:
    """Move aside the steps that are done again."""
    again = directory.rewind(done)
    if again and job == "train":
        print(f"going on from step {done}: {again} steps recorded after it are done again, and kept in rewound/")


def refine_run(
    session: Session, done: int, after_step: Callable[[], object] = lambda: None, hooks: Hooks | None = None
) -> None:
    """Build a corpus from the step `done` on: sample, verify, refine and verify every problem once, and keep all of it.

    A step is recorded once its rows are written.
    """
    inputs = session.inputs
    directory = session.directory
    feed = start_feed(session, start_step=done, version=0)
    pausing = Pausing(session)
    hooks = hooks or Hooks()
    reviewing = Reviewing(directory, session.recipe)
    since = time.time()
    alarms = Alarming(session, done, lambda: {"what": "pause" if pausing.resting else "wait", "since": since})
    session.door.shows("alarms", alarms.lasting)
    try:
        session.wait_until_started()
        session.display.phase("refining")
        board = "tensorboard" in session.recipe.trackers
        with Metrics(directory.path, inputs.total_steps, done, board) as metrics:
            bad_rows = BadRows(session, done)
            for step in range(done, inputs.total_steps):
                pausing.rest(session.look)
                session.look()  # when rows are ready, nothing else looks
                table = bad_rows.checked(feed.take(step, session.look, inputs.rows_in_step(step)))
                table = reviewing.of_step(table)
                record = _keep(session, metrics, step + 1, table, hooks, alarms)
                session.room.having(f"the queue of step {step + 1}", partial(reviewing.queue, table))
                directory.on_commit(step + 1)
                after_step()
                session.display.step({"step": step + 1} | record)
                alarms.tell()
                session.followers.recorded(step + 1, record, table)
                hooks.step(step + 1, record, table)
                since = time.time()
    finally:
        alarms.close()
        pausing.over()
        feed.close()
        with beating():
            report_html(directory.path, hurried=session.stop.hurried)
        summarise(directory)


def _keep(
    session: Session, metrics: Metrics, step: int, table: pa.Table, hooks: Hooks, alarms: Alarming
) -> dict[str, float]:
    """Write the step's rows and metrics; returns the metrics."""
    rows = light(table)
    record = row_metrics(rows) | step_metrics(table) | {"time_s": time.time()} | hooks.measured(table)
    record |= alarms.step(step, record, rows)
    session.room.having(f"the rows of step {step}", lambda: session.directory.write_rows(step, table))
    session.room.having(f"the metrics of step {step}", lambda: metrics.log(step, record))
    return record
