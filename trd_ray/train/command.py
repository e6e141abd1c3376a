"""Two jobs, from a recipe to the files that they leave: train and refine (the third is trd_ray.evaluate.command).

    recipe -> prepare, require, claim (trd_ray.session.beginning) -> plan: what is left -> engines -> steps -> report

Exit codes: 0 done, 1 failed, 2 the user can fix it, 128 + n stopped by signal n (training leaves a checkpoint to resume
from).
"""

from trd_ray.config import Recipe
from trd_ray.preflight import placement
from trd_ray.preflight.sharing import sharing
from trd_ray.record import warnings
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.ledger import facts_of_rows, row_metrics
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import summarise
from trd_ray.rows import light
from trd_ray.session.beginning import begin
from trd_ray.session.cluster import Connection
from trd_ray.session.dry import DryRun
from trd_ray.session.inputs import prepare
from trd_ray.session.session import Session
from trd_ray.train import report
from trd_ray.train.loop import train_run
from trd_ray.train.plan import Resume, is_begun, plan, require_refinements, to_resume
from trd_ray.train.rollouts import start_feed


def dry_run(recipe: Recipe, job: placement.Job, asked: DryRun | None = None) -> int:
    """Print the resolved recipe, the data, the actors with their memory, and whether the cluster at hand holds them."""
    asked = asked or DryRun()
    with Connection(recipe) as connection:
        inputs = prepare(recipe, job, asked.gpu_gib, connection)
        placed = inputs.plan(connection.machines(), asked.gpu_gib)
    notes = filter(None, [*inputs.notes, sharing(inputs.recipe, job)])
    return asked.show(inputs.recipe, list(notes), str(inputs.findings), placed)


def run(recipe: Recipe, job: placement.Job = "train", resume: Resume = "no") -> int:
    """Train, or refine to a corpus; returns 0, or raises what ended it early."""
    if job == "refine":
        require_refinements(recipe)
    with begin(job, recipe.directory, recipe) as beginning:
        inputs = prepare(to_resume(recipe, resume), job, connection=beginning.connection)
        recipe = inputs.recipe
        beginning.require(inputs)
        begun = is_begun(recipe, resume)
        directory = RunDirectory.create(recipe.directory, recipe, begun)
        beginning.claimed(directory, inputs)
        left = plan(inputs, directory, begun, resume)
        if left.finished:
            print(f"{left.finished}: nothing is left to do")
        else:
            _rewind(directory, left.done, job)
            with beginning.session(inputs, directory, Display(inputs.total_steps, done=left.done)) as session:
                session.display.phase("starting engines and learner" if job == "train" else "starting engines")
                session.start(student_path=inputs.student_path, version=0)
                if job == "train":
                    train_run(session, left.done, left.checkpoint)
                else:
                    refine_run(session, left.done)
    report.show(directory)
    return 0


def _rewind(directory: RunDirectory, done: int, job: placement.Job) -> None:
    """Move aside the steps that are done again."""
    again = directory.rewind(done)
    if again and job == "train":
        print(f"going on from step {done}: {again} steps recorded after it are done again, and kept in rewound/")


def refine_run(session: Session, done: int) -> None:
    """Build a corpus from the step `done` on: sample, verify, refine and verify every problem once, and keep all of it.

    A step is recorded once its rows are written.
    """
    inputs = session.inputs
    directory = session.directory
    feed = start_feed(session, start_step=done, version=0)
    try:
        session.wait_until_started()
        session.display.phase("refining")
        with Metrics(directory.path, inputs.total_steps, done) as metrics:
            for step in range(done, inputs.total_steps):
                session.look()  # when rows are ready, nothing else looks
                table = feed.take(step, session.look, inputs.rows_in_step(step))
                directory.write_rows(step + 1, table)
                rows = light(table)
                record = row_metrics(rows)
                metrics.log(step + 1, record)
                session.display.step({"step": step + 1} | record)
                if step == done:
                    session.warn(warnings.of_rows(facts_of_rows(rows), session.recipe))
    finally:
        feed.close()
        summarise(directory)
