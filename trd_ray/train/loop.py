"""A run that trains, from its first step to its last: the order of things stands in `Training.step`.

    start engines and learner -> evaluate the base -> each step: take rows, probe, look closely if due, train, sync,
                                                      evaluate if due, record, checkpoint if due -> summary

With placement=timeshare the engines rest from the probe to the sync, and the learner has their GPUs (turns.py). Nothing
else differs.

What the loop waits for, and what ends the wait:

- **rows**: until the feed has all rows of the step. The stream makes them as soon as the engines serve a version that
  is new enough, so `policy.publish` of the previous step ends the wait. Its deadline is stream.stall_timeout_s.
- **the learner**: until every rank has answered a command. The deadline is learner.step_timeout_s. If its worker group
  dies or hangs, another one takes its place and makes the same weights again (see trd_ray.train.living).
- **requests in flight**: until they are answered, where they are to finish before new weights come. The deadline is
  request_timeout_s.
- **the engines**: until all that follow the learner serve its version. A pool restarts an engine that died. The
  deadlines are sync.timeout_s and start_timeout_s.

While it waits for rows, the loop looks at the pools: it sends the weights to engines that restarted, ends when one has
failed, and stops when it was asked to. It looks at the learner too, whose group may end with nothing to do. In every
wait it looks at its door (see `trd_ray.session.door`).

What is kept:

- A step is recorded (rows, metrics) after its update and its sync. A checkpoint holds everything up to its step.
- An error or a signal ends the step under way, and everything is stopped. The state of the last recorded step is saved
  if the learner still has exactly that state.
- A crash leaves the newest checkpoint. A resumed run goes on from there, with the first problem that the checkpoint has
  not trained. The metrics and rows of later steps are moved aside and made again.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray import lineage
from trd_ray.config import of_each
from trd_ray.diagnostics.signal_metrics import step_metrics
from trd_ray.record.clock import Clock
from trd_ray.record.ledger import row_metrics
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import summarise
from trd_ray.record.timeline import Timeline
from trd_ray.report.written import report
from trd_ray.rows import light
from trd_ray.session.endings import cause
from trd_ray.session.last_words import beating
from trd_ray.session.session import Session
from trd_ray.session.shared_gpus import SharedGpus
from trd_ray.stream.diagnosed import Bounds
from trd_ray.stream.examples import examples_of, rebuilt
from trd_ray.stream.feed import Feed
from trd_ray.stream.siblings import one_of_each
from trd_ray.token_values import token_metrics
from trd_ray.train.alarming import Alarming
from trd_ray.train.bad_rows import BadRows
from trd_ray.train.checkpoints import Checkpoints
from trd_ray.train.diagnosing import Diagnosing, Looked
from trd_ray.train.evaluations import Evaluations
from trd_ray.train.group import living_learner
from trd_ray.train.living import sha256_of
from trd_ray.train.own_hooks import Hooks
from trd_ray.train.policy import Policy
from trd_ray.train.probe import Logprobs, Sequences, logprob_gap, scored_again
from trd_ray.train.rollouts import start_feed
from trd_ray.train.sizing import GroupSize
from trd_ray.train.steering import Progressed, Steering
from trd_ray.train.turns import Turn, Turns

STOP_LEARNER_S = 60
LOOK_EVERY_S = 1.0  # at the pools, while rows are waited for


def train_run(
    session: Session,
    done: int,
    checkpoint: Path | None,
    after_step: Callable[[], object] = lambda: None,
    hooks: Hooks | None = None,
) -> None:
    """Train from the step `done` to the end, and evaluate, on a session whose pools run or start.

    `checkpoint` holds the state after `done` steps; None stands for the initial weights. `hooks` is the recipe's own
    code, if it is loaded already. What ends the run early is raised once a checkpoint is written.
    """
    hooks = hooks or Hooks.of(session.recipe)
    with session.followers.during("train", done, session.door.look), hooks.during(session):
        _train(Training(session, done, checkpoint, after_step, hooks), resumed=checkpoint is not None)


def _train(training: "Training", resumed: bool) -> None:
    try:
        training.start(resumed)
        training.run()
    except Exception:  # also Stopped, which a first Ctrl-C raises; a second one raises KeyboardInterrupt
        training.save()
        raise
    finally:
        training.steering.over()
        with beating():  # every wait in it has a deadline
            training.close()
            report(training.directory.path, hurried=training.session.stop.hurried)
        summarise(training.directory)


class Training:
    """The parts of a run, and the steps that bring them together."""

    def __init__(
        self, session: Session, done: int, checkpoint: Path | None, after_step: Callable[[], object], hooks: Hooks
    ):
        r = self.recipe = session.recipe
        self.hooks = hooks
        self.session = session
        self.after_step = after_step
        self.directory = session.directory
        self.total_steps = session.inputs.total_steps
        self.corpus = session.inputs.problems is None
        self.clock = Clock(Timeline(session.directory.path / "timeline.json"), sampled=not self.corpus)
        self.clock.timeline.mark(f"resumed after step {done}" if done else "start")
        self.learner = living_learner(session, done, checkpoint)
        self.trainer = self.learner.trainer
        self.policy = Policy(
            done,
            following=session.following(),
            push=self.learner.sync, look=self.look, drain=session.drain,
            restart_timeout_s=r.sampler.start_timeout_s, offline=r.stream.max_staleness == "never",
            drains=r.sync.in_flight == "drain" and r.sync.lora != "adapter",
        )  # fmt: skip
        self.turns = Turns(
            SharedGpus(session), self.learner.give_gpu, self.policy.watch, self.clock.span, taken=r.takes_turns,
            first=Turn.ENGINES if session.lender else Turn.LEARNER, show=session.display.turn,
        )  # fmt: skip
        self.learner.around.make_room = self.make_room
        self.learner.around.go_on = self.turns.go_on
        session.door.shows("turn", self.turns.shown)
        self.evaluations = Evaluations(session, self.policy, self.clock.timeline.rows, hooks.evaluation)
        session.display.plans(self.evaluations.planned())
        session.display.remember(session.directory.read_metrics())
        session.display.checkpoint(done)
        self.rows_sha256 = sha256_of(session.directory, done, checkpoint)  # of the steps that are recorded
        self.checkpoints = Checkpoints(
            r, session.directory, self.trainer, saved=done, show=session.display.phase, say=session.display.say,
            outlive=self.learner.outlive, rows_sha256=lambda: self.rows_sha256, room=session.room,
            committed=self.checkpointed,
        )  # fmt: skip
        self.learner.on_restart.append(self.checkpoints.forget)
        self.diagnosing = Diagnosing(r, session.taught, bounds_of(session))
        self.size = GroupSize(session, ranks=lambda: self.trainer.ranks)
        session.door.shows("learner", self.learner.figures)
        self.metrics = Metrics(session.directory.path, self.total_steps, done, "tensorboard" in r.trackers)
        self.bad_rows = BadRows(session, done)
        self.feed: Feed | None = None
        self.done = done  # steps that are recorded
        self.trained = done  # steps in the learner's weights; ahead of `done` between update and record
        self.recorded: dict[str, Any] = {}  # metrics of the last step
        self.trainer.look = session.glance
        session.on_notice = self.checkpoints.hurry
        self.steering = Steering(
            session, self.clock, self.policy, self.checkpoints,
            now=lambda: Progressed(self.done, self.trained, self.recorded),
        )  # fmt: skip
        self.alarms = Alarming(session, done, self.steering.doing)
        session.door.shows("alarms", self.alarms.lasting)

    def checkpointed(self, steps: int, folder: Path) -> None:
        self.session.display.checkpoint(steps)
        self.hooks.checkpoint(steps, folder)

    def start(self, resumed: bool) -> None:
        """Start engines, learner and stream, and make the evaluation that comes before the first step."""
        with self.clock.span("start"):
            self.turns.learner()
            if not self.session.learner_waits_for_engines:
                self.session.admit_learner()
                self.trainer.start()
            if self.done < self.total_steps or not resumed:
                # The stage starts beside engines and learner, and its first requests wait at the gates.
                version = 0 if self.policy.offline else self.done
                self.feed = start_feed(self.session, start_step=self.done, version=version)
            if self.session.learner_waits_for_engines:
                self.session.admit_learner()
                self.trainer.start()
            self.session.display.starting({"learner": (0, 1)})
            self.learner.outlive(lambda: self.learner.wait_until_started(self.session.look_at_start))
            self.session.display.starting({"learner": (1, 1)})
            self.session.wait_until_started()
            # Engines begin with the initial weights.
            self.turns.engines((lambda: self.policy.publish(self.done)) if resumed else None)
        if resumed:
            with self.clock.span("evaluate"):
                self.evaluations.missed(self.done)
        if self.feed:
            self.policy.watch()  # engines that served another run get this one's weights
            if not resumed:
                with self.clock.span("evaluate"):
                    self.evaluations.base()
            self.session.display.phase("training")

    def look(self) -> dict[str, dict[str, Any]]:
        """What the pools are doing; looks at the learner as well, which nobody asks for anything meanwhile."""
        statuses = self.session.look()
        self.turns.look(statuses)
        self.learner.watch()
        return statuses

    def make_room(self) -> None:
        """Another learner is about to start: what the one before it had begun is over."""
        if self.turns.taken:
            self.learner.around.release()
        self.turns.make_room()

    def run(self) -> None:
        self.clock.start()
        for step in range(self.done, self.total_steps):
            self.steering.rest(lambda: self.checkpoints.save(self.done, self.policy.version, self.recorded))
            self.policy.watch()  # where rows are always ready, as from a corpus, `take` never waits, so never looks
            self.step(step)
            self.resize_if_due()
        self.steering.over()
        self.session.display.phase("finishing the last checkpoint")
        self.checkpoints.finish(wait=True)

    def step(self, step: int) -> None:
        span = self.clock.span
        with span("wait"):
            table = self.take(step)
        with span("probe"):
            gap = self.probe(table)
        self.turns.learner()
        with span("examples"):
            table = self.with_examples(table)
            rows = light(table)
            examples = examples_of(table)
        looked = self.look_closely(step, table)
        with span("train"):
            self.trained = step + 1  # from here on the weights may have changed
            learned = self.learner.step(examples)
        with span("sync"):
            self.turns.engines(lambda: self.policy.publish(step + 1))
        table = self.diagnosing.kept(table, learned.tokens, looked)
        metrics = row_metrics(rows, step) | learned.metrics | token_metrics(learned.tokens.values_FN) | gap
        metrics |= self.clock.seconds(rows) | self.state(rows)
        try:
            with span("evaluate"):
                metrics |= self.evaluations.if_due(step + 1)
        finally:  # a step that has trained is recorded, also when its evaluation was stopped
            with span("record"):
                self.record(step + 1, table, rows, metrics)
        with span("checkpoint"):
            self.checkpoints.if_due(step + 1, self.total_steps, self.policy.version, metrics)
        self.after_step()

    def resize_if_due(self) -> None:
        """The ranks move, or become more, where the nodes of the cluster have changed."""
        if self.done < self.total_steps and self.size.due():
            with self.clock.span("checkpoint"):
                if self.checkpoints.holds(self.done, self.policy.version, self.recorded) and not self.learner.resize():
                    self.size.put_off()

    def take(self, step: int) -> pa.Table:
        assert self.feed is not None
        feed = self.feed
        expected = self.session.inputs.rows_in_step(step)

        looked = time.monotonic()

        def while_waiting() -> None:
            nonlocal looked
            self.session.check()
            if time.monotonic() - looked > LOOK_EVERY_S:
                looked = time.monotonic()
                self.policy.watch()
                self.checkpoints.while_rows_are_awaited(self.done, self.policy.version, self.recorded)
            self.session.display.rollouts(feed.arrived(step), expected)

        return self.bad_rows.checked(feed.take(step, while_waiting, expected))

    def probe(self, table: pa.Table) -> dict[str, float]:
        pool = self.session.pools.get("sampler")
        if self.corpus or pool is None:
            return {}
        timeout_s = self.recipe.sampler.request_timeout_s

        def logprobs(sequences: Sequences) -> Logprobs:
            self.turns.learner()  # the engines have given their part by now
            return self.learner.logprobs(sequences)

        return logprob_gap(
            table, self.policy, count=self.recipe.sync.probe_rows, learner=logprobs,
            engine=lambda sequences: scored_again(pool, sequences, self.policy.version, timeout_s),
        )  # fmt: skip

    def with_examples(self, table: pa.Table) -> pa.Table:
        """The table with its example columns, which the stage has made. A corpus holds those of another recipe."""
        if self.corpus:
            vocabulary = self.session.inputs.findings.shared_vocabulary
            table = rebuilt(table, self.recipe, self.session.taught, vocabulary)
        return one_of_each(table) if self.recipe.train.subset == "best" else table

    def look_closely(self, step: int, table: pa.Table) -> Looked:
        """What the learner finds of some rows before the update, in the steps that diagnostics ask for."""
        if not self.diagnosing.due(step):
            return {}
        with self.clock.span("diagnostics"):
            return self.diagnosing.look(table, self.learner.score)

    def state(self, rows: list[dict]) -> dict[str, float]:
        """Metrics of the run itself, after the sync of the step."""
        waiting = {f"queue/{name}": status["waiting"] for name, status in self.session.statuses().items()}
        of_learner = self.checkpoints.take_seconds()
        if self.learner.in_a_row:
            of_learner["learner/restarts"] = self.learner.in_a_row
        return {"version": self.policy.version, "epoch": rows[-1]["epoch"]} | waiting | of_learner

    def record(self, steps: int, table: pa.Table, rows: list[dict], metrics: dict[str, Any]) -> None:
        room = self.session.room
        metrics |= step_metrics(table) | self.hooks.measured(table)
        worked = self.trainer.take_worked()
        metrics |= self.alarms.step(steps, metrics, rows, worked)
        room.having(f"the rows of step {steps}", lambda: self.directory.write_rows(steps, table))
        room.having(f"the metrics of step {steps}", lambda: self.metrics.log(steps, metrics))
        self.rows_sha256 = lineage.advance(self.rows_sha256, steps, lineage.rows_that_train(table))
        self.learner.record(steps)
        self.session.display.step({"step": steps} | metrics)
        self.done, self.recorded = steps, metrics
        self.alarms.tell()
        self.clock.draw(rows, worked)
        self.session.followers.recorded(steps, metrics, table)
        self.hooks.step(steps, metrics, table)

    def save(self) -> None:
        """Save the state that the run ends with; a learner that failed has none."""
        self.learner.mortal = True  # nobody waits for another group, or for room on the disk
        self.checkpoints.room = None
        try:
            if not self.learner.lost:
                if self.trained == self.done:
                    self.checkpoints.save(self.done, self.policy.version, self.recorded)
                else:
                    self.checkpoints.now = None  # the learner is past what is recorded
                self.checkpoints.finish(wait=True)
        except Exception as e:
            if not self.learner.lost:
                print(f"checkpoint {self.done} could not be written: {cause(e)}")

    def close(self) -> None:
        """Every part is closed, also when another cannot be."""
        with ExitStack() as last_first:
            if self.session.lender and not self.session.stop.hurried:
                last_first.callback(self.turns.leave)
            last_first.callback(lambda: self.trainer.stop(0 if self.session.stop.hurried else STOP_LEARNER_S))
            last_first.callback(lambda: self.clock.close(self.trainer.take_worked()))
            last_first.callback(self.metrics.close)
            last_first.callback(self.alarms.close)
            if self.feed is not None:
                last_first.callback(self.feed.close)


def bounds_of(session: Session) -> Bounds:
    """How long a sequence may be that the learner scores."""
    inputs = session.inputs
    positions = {name: facts.max_positions for name, facts in of_each(inputs.teacher).items()}
    return Bounds(inputs.student.max_positions, positions, inputs.findings.shared_vocabulary)
