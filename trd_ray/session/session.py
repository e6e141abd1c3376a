"""The engines of a run, as every program uses them: started, watched, lent to another run, stopped.

    Inputs, RunDirectory, Display -> Session.start() -> pools, which answer requests until close()

At shutdown `close` stops the pools and waits for them, unless a second signal came. When a pool has failed, `look`
raises RunFailed with what the pool said.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import reason
from trd_ray.engine.launch import STOP_POOLS_S, create_pool, stop_pools
from trd_ray.engine.reservation import Reservation, reserve
from trd_ray.errors import RunFailed
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement, require
from trd_ray.preflight.seats import LEARNER
from trd_ray.record import warnings
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.score import stats
from trd_ray.session.cluster import is_local
from trd_ray.session.fetch import ModelsWanted, fetch_models
from trd_ray.session.inputs import Inputs
from trd_ray.session.stop import StopSignals
from trd_ray.stream.answers import evaluation_rows
from trd_ray.views import Views, load_views

DRAIN_POLL_S = 0.5


class Session:
    """The engine pools of a run: what they are doing, and the waits in which they are watched."""

    def __init__(
        self,
        inputs: Inputs,
        directory: RunDirectory,
        display: Display,
        stop: StopSignals,
        machines: Sequence[Machine],
        plan: Placement | None = None,
    ):
        """`plan` is that of the session whose pools this one borrows."""
        self.inputs = inputs
        self.directory = directory
        self.display = display
        self.stop = stop
        self.machines = machines
        self.recipe = inputs.recipe
        self.plan = plan or inputs.plan(machines)
        self.reservation = Reservation(self.plan)
        self.views: Views = load_views(self.recipe, inputs.student_path, inputs.teacher_path)
        self.pools: dict[str, ActorHandle] = {}
        self.to_start: list[str] = []  # pools whose turn has not come
        self.starting: list[Any] = []
        self.seen: dict[str, tuple[float, dict]] = {}  # name -> when, status

    def start(self, *, student_path: str, version: int) -> None:
        """Begin to start the pools, once every node has the models.

        `student_path` holds the weights of policy version `version`.
        """
        self.fetch(student_path)
        r = self.recipe
        logs = self.directory.path / "logs"
        backend = self.plan.sync_backend if self.inputs.job == "train" else None
        moves = r.teacher.follow != "frozen"
        actors = self.plan.specs
        require(self.plan)  # the nodes may be others by now than those that were looked at
        self.reservation = reserve(self.plan, r.sampler.start_timeout_s, self.stop.check)
        if "sampler" in actors:
            self.pools["sampler"] = create_pool(
                r.sampler, r.student, student_path, r, actor=actors["sampler"], version=version,
                transfer_backend=backend, logs=logs, places=self.reservation.places("sampler"),
            )  # fmt: skip
        if "refiner" in actors:
            self.pools["refiner"] = create_pool(
                r.refiner, r.teacher if r.teacher.path else r.student,
                student_path if moves else self.inputs.teacher_path, r,
                actor=actors["refiner"], version=version if moves else 0,
                transfer_backend=backend if moves else None, logs=logs, places=self.reservation.places("refiner"),
            )  # fmt: skip
        self.to_start = list(self.pools)
        self._start_those_whose_turn_it_is()

    def _start_those_whose_turn_it_is(self) -> None:
        """Pools that share a GPU start one after another, all others at once."""
        turns = self.plan.turns()
        first = min((turns[name] for name in self.to_start), default=0)
        self.starting = [self.pools[name].start.remote() for name in self.to_start if turns[name] == first]
        self.to_start = [name for name in self.to_start if turns[name] > first]

    @property
    def learner_waits_for_engines(self) -> bool:
        """Whether the learner shares a GPU with engines, and so starts after they have taken their memory."""
        return self.plan.turns().get(LEARNER, 0) > 0

    def admit_learner(self) -> None:
        """Wait for the engines whose GPUs the learner has shares of, and leave it those."""
        if self.learner_waits_for_engines:
            self.wait_until_started()
        self.reservation.admit_learner()

    def fetch(self, student_path: str) -> None:
        """Wait until every node that may need the models has them: the deadlines of engines and learner begin later."""
        r = self.recipe
        loads = [actor for name, actor in self.plan.specs.items() if name != "verifier"]
        wanted = [ModelsWanted.of(r.student.path, student_path, r.student.revision)]
        if r.teacher.path and self.plan.specs.keys() & {"refiner", "learner"}:
            wanted.append(ModelsWanted.of(r.teacher.path, self.inputs.teacher_path, r.teacher.revision))
        if fetch_models(
            wanted, local=is_local(r), on_gpus=all(actor.gpus for actor in loads),
            timeout_s=r.cluster.fetch_timeout_s, while_waiting=self.stop.check, say=self.display.phase,
        ):  # fmt: skip
            self.display.phase("starting engines")

    def wait_until_started(self) -> None:
        """Wait for all engines; after their deadline (start_timeout_s) the pool raises with what was lacking."""
        while self.starting:
            self.look_at_start()

    def look_at_start(self) -> None:
        """Show what has started, within a second; raises if an engine could not, or if the run was asked to stop."""
        if self.starting:
            done, self.starting = ray.wait(self.starting, num_returns=1, timeout=0.5)
            asked: list[Any] = [pool.status.remote() for pool in self.pools.values()]
            if not ray.wait(asked, num_returns=len(asked), timeout=0.5)[1]:  # else pools are starting themselves
                statuses = zip(self.pools, ray.get(asked), strict=True)
                self.display.starting({name: (status["up"], status["engines"]) for name, status in statuses})
            ray.get(done)
            if not self.starting and self.to_start:
                self._start_those_whose_turn_it_is()
        self.stop.check()

    def lend(self, inputs: Inputs, directory: RunDirectory, display: Display) -> "Session":
        """A session of another run on these running pools, which only the lender closes.

        What the other run asks of an engine when it starts (model, precision, lengths) must be the same. A run that
        trains also needs `forget_weights`.
        """
        other = Session(inputs, directory, display, self.stop, self.machines, self.plan)
        needed = inputs.plan(self.machines).specs
        other.pools = {name: pool for name, pool in self.pools.items() if name in needed}
        other.reservation = self.reservation
        return other

    def forget_weights(self) -> None:
        """Make the engines that follow the learner wait for this run's weights: they hold those of another run."""
        ray.get([self.pools[name].forget_weights.remote() for name in self.following()])

    @property
    def refiner(self) -> ActorHandle:
        return self.pools.get("refiner") or self.pools["sampler"]

    def following(self) -> dict[str, str]:
        """The pools that get weights after every step -> whose: the "student"'s, or the "teacher"'s moving average."""
        refines = {"live": "student", "ema": "teacher"}.get(self.recipe.teacher.follow)
        whose = {"sampler": "student"} | ({"refiner": refines} if refines else {})
        return {name: whose[name] for name in self.pools if name in whose}

    def drain(self) -> str | None:
        """Wait until the pools that get weights have answered what is to finish first; returns what went wrong."""
        pending: list[Any] = [self.pools[name].drain.remote() for name in self.following()]
        while pending:
            done, pending = ray.wait(pending, timeout=DRAIN_POLL_S)
            if not done:
                self.look()
            try:
                ray.get(done)
            except Exception as e:
                self.look()  # a pool that has failed says why
                return reason(e)
        return None

    def look(self) -> dict[str, dict]:
        """Show what the pools are doing; raises if one has failed or if the run was asked to stop."""
        statuses = self.statuses()
        for status in statuses.values():
            if status["failure"]:
                raise RunFailed(status["failure"])
        self.stop.check()
        return statuses

    def statuses(self) -> dict[str, dict]:
        now = time.time()
        shown: dict[str, dict[str, float]] = {}
        statuses = dict(zip(self.pools, ray.get([p.status.remote() for p in self.pools.values()]), strict=True))
        for name, status in statuses.items():
            then, before = self.seen.get(name, (now, status))
            rate = (status["tokens"] - before["tokens"]) / (now - then) if now > then else 0.0
            shown[name] = {"running": status["running"], "waiting": status["waiting"], "tokens_per_s": rate}
            if now - then > 2 or name not in self.seen:
                self.seen[name] = (now, status)
        self.display.pools(shown)
        return statuses

    def evaluate(
        self,
        name: str,
        step: int,
        version: int,
        problems: pa.Table,
        while_waiting: Callable[[], object] | None = None,
        on_rows: Callable[[list[dict]], object] = lambda rows: None,
    ) -> stats.Score:
        """Sample, verify and score the held-out problems with the weights of `version`, and write the score.

        `while_waiting` is called meanwhile, instead of `look`; `on_rows` gets the rows that are scored.
        """
        e = self.recipe.evaluation
        self.display.phase(f"evaluating {name}: {problems.num_rows} problems x {e.samples} samples")
        rows = evaluation_rows(
            self.recipe, problems, self.views, self.pools["sampler"], step=step, min_version=version,
            while_waiting=while_waiting or self.look,
            on_progress=lambda done, total, passed: self.display.evaluating(name, done, total, passed),
        )  # fmt: skip
        on_rows(rows)
        score = stats.score(rows, name=name, step=step, version=version, resamples=e.bootstrap, seed=self.recipe.seed)
        base = next((s for s in self.directory.read_evaluations() if s.name == "base"), None)
        if base and name != "base" and base.per_problem.keys() == score.per_problem.keys():
            score = stats.compare(score, base, resamples=e.bootstrap, seed=self.recipe.seed)
        self.directory.write_evaluation(score, rows)
        self.warn(warnings.of_score(score, self.recipe, e.response_tokens))
        return score

    def warn(self, found: dict[str, str]) -> None:
        """Give each kind of warning once, on the screen and in train.log."""
        if said := self.display.warn(found):
            with open(self.directory.path / "train.log", "a") as log:
                log.writelines(f"{text}\n" for text in said)

    def close(self) -> None:
        stop_pools(list(self.pools.values()), wait_s=0 if self.stop.hurried else STOP_POOLS_S)
        self.reservation.release()
