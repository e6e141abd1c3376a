"""The engines of a run, as every program uses them: started, watched, lent to another run, stopped.

    Inputs, RunDirectory, Display -> Session.start() -> pools, which answer requests until close()

At shutdown `close` stops the pools and waits for them, unless a second signal came. When a pool has failed, `look`
raises RunFailed with what the pool said.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from trd_ray.config import JUDGE_POOL, pool_of
from trd_ray.engine.actor import reason
from trd_ray.engine.launch import STOP_POOLS_S, create_pool, stop_pools
from trd_ray.engine.reservation import Reservation, reserve
from trd_ray.errors import RunFailed
from trd_ray.preflight.judge_fits import context_of
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement, require
from trd_ray.preflight.reseating import Who, group_of, ranks_that_fit
from trd_ray.preflight.seats import LEARNER
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.mirror import Mirror
from trd_ray.record.room import Room
from trd_ray.score import stats
from trd_ray.session.cluster import is_local
from trd_ray.session.door import Door
from trd_ray.session.evaluating import evaluated
from trd_ray.session.fetch import fetch_models
from trd_ray.session.followers import Followers
from trd_ray.session.fresh_seats import has_dead_node, lost_ranks, machines_now, seats_again
from trd_ray.session.inputs import Inputs
from trd_ray.session.notices import Notice, Notices, this_node
from trd_ray.session.pool_figures import PoolFigures
from trd_ray.session.pool_models import model_of, models_wanted
from trd_ray.session.pool_pulse import PoolPulse
from trd_ray.session.stop import StopSignals
from trd_ray.stream.judging import JudgeAt
from trd_ray.views import Views, load_views

ANSWER_POLL_S = 0.5
SEAT_EVERY_S = 10.0


class Session:
    """The engine pools of a run: what they are doing, and the waits in which they are watched."""

    def __init__(
        self, inputs: Inputs, directory: RunDirectory, display: Display, stop: StopSignals,
        machines: Sequence[Machine], plan: Placement | None = None, door: Door | None = None,
    ):  # fmt: skip
        """`plan` is that of the session whose pools this one borrows. `door` is the run's, if it is open already."""
        self.inputs = inputs
        self.directory = directory
        self.display = display
        self.stop, self.machines = stop, machines
        self.door = door or Door(directory.path, inputs.job)
        self.recipe = inputs.recipe
        self.plan = plan or inputs.plan(machines)
        self.seated_s = -SEAT_EVERY_S  # when other places for engines were looked for
        self.reservation = Reservation(self.plan)
        self.taught: dict[str, Views] = load_views(self.recipe, inputs.student_path, inputs.teacher_path)
        self.views = next(iter(self.taught.values()))  # of the student, which those of each teacher show alike
        self.pools: dict[str, ActorHandle] = {}
        self.pulse = PoolPulse(self.pools, self.recipe.heartbeat_s, self._tell_of_pool)
        self.to_start: list[str] = []  # pools whose turn has not come
        self.starting: list[Any] = []
        self.lender: Session | None = None  # of the pools, if they are another's
        self.mirror: Mirror | None = None
        self.notices = None if is_local(self.recipe) else Notices(self._nodes, this_node())
        self.on_notice: Callable[[], object] = lambda: None  # of a program that can save what it has
        self.seating = threading.RLock()  # whoever changes the reservation holds it
        self.room = Room(directory.path, look=self.check, tell=self._tell_of_room)
        places = {name: engine.max_concurrent for name, engine in self.recipe.engines.items()}
        self.figures = PoolFigures(self.pools, places)
        display.where(directory.path)
        self.followers = Followers(self.recipe, directory, stop, lambda text: self.display.say(text), self.warn)
        self._open_door()

    def _open_door(self) -> None:
        """What every run can be asked, and what it shows; a program adds its own."""
        self.door.tell = lambda text: self.display.say(text)
        self.door.on("stop", self._asked_to_stop)
        self.door.shows("shown", lambda: self.display.shown())
        self.door.shows("left_s", lambda: self.display.left_s())
        self.door.shows("pools", lambda: self.followers.pools(self.figures.latest()))

    def _asked_to_stop(self, arguments: dict[str, Any]) -> str:
        if arguments.get("now"):
            self.door.afterwards(self.stop.at_once)
            return "it ends at once; what is on the disk stays"
        self.stop.ask("trd stop")
        trains = ", and a checkpoint is written" if self.inputs.job == "train" else ""
        return f"it stops as soon as nothing is half done{trains}; --now does not wait for that"

    def _tell_of_room(self, said: str) -> None:
        self.display.say(said)
        self.directory.event("disk", said=said)

    def start(
        self, *, student_path: str, version: int, without: Container[str] = (), learner_first: bool = False
    ) -> None:
        """Begin to start the pools, once every node has the models. With `learner_first` their engines wait.

        `student_path` holds the weights of policy version `version`. Pools of `without` have a place and no engines.
        """
        self.fetch(student_path)
        r = self.recipe
        logs = self.directory.path / "logs"
        backend = self.plan.sync_backend if self.inputs.job == "train" else None
        actors = self.plan.specs
        require(self.plan)  # the nodes may be others by now than those that were looked at
        self.reservation = reserve(self.plan, r.sampler.start_timeout_s, self.check)
        for name in (pool for pool in r.engines if pool in actors and pool not in without):
            follows = name in r.following
            self.pools[name] = create_pool(
                r.engines[name], *model_of(name, self.inputs, student_path), r, actor=actors[name],
                version=version if follows else 0, transfer_backend=backend if follows else None, logs=logs,
                places=self.reservation.places(name), linear_layers=self.inputs.student.linear_layers,
            )  # fmt: skip
        self.to_start = list(self.pools)
        if not learner_first:
            self.start_engines()

    def start_engines(self) -> None:
        """Pools that share a GPU start one after another, all others at once."""
        turns = self.plan.turns()
        first = min((turns[name] for name in self.to_start), default=0)
        self.starting = [self.pools[name].start.remote() for name in self.to_start if turns[name] == first]
        self.to_start = [name for name in self.to_start if turns[name] > first]

    @property
    def learner_waits_for_engines(self) -> bool:
        """Whether the learner has shares of engines' GPUs, and so starts after they have taken their memory."""
        return not self.recipe.takes_turns and self.plan.turns().get(LEARNER, 0) > 0

    def admit_learner(self) -> None:
        """Wait for the engines whose GPUs the learner has shares of, and leave it those."""
        if self.learner_waits_for_engines:
            self.wait_until_started()
        self.reservation.admit_learner()

    def fetch(self, student_path: str) -> None:
        """Wait until every node that may need the models has them: the deadlines of engines and learner begin later."""
        r = self.recipe
        loads = [actor for name, actor in self.plan.specs.items() if name != "verifier"]
        wanted = models_wanted(self.inputs, student_path, self.plan.specs)
        if fetch_models(
            wanted, local=is_local(r), on_gpus=all(actor.gpus for actor in loads),
            timeout_s=r.cluster.fetch_timeout_s, while_waiting=self.check, say=self.display.phase,
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
            statuses = self.pulse.soon(0.5)
            self.display.starting({name: (status["up"], status["engines"]) for name, status in statuses.items()})
            ray.get(done)
            if not self.starting and self.to_start:
                self.start_engines()
        self.check()

    def check(self) -> None:
        """Answer at the door, then raise if the run was asked to stop; called wherever the run waits."""
        self.door.look()
        for text in self.mirror.news() if self.mirror else ():
            self.display.say(text)
            self.directory.event("mirror", said=text)
        self.followers.look()
        for notice in self.notices.look() if self.notices else ():
            self._hear(notice)
        self.stop.check()

    def glance(self) -> None:
        """Answer at the door, and look after the pools; called in waits that are not given up."""
        self.door.look()
        with contextlib.suppress(RayError):  # a pool that is no more is met by those who need it
            self._seat_the_homeless(self.pulse.soon(0.0), may_wait=False)

    def _hear(self, notice: Notice) -> None:
        """A node leaves. The run leaves with it, or may lose what is there: a checkpoint comes first in either case."""
        self.display.say(str(notice))
        self.directory.event("notice", said=str(notice), node=notice.host, left_s=notice.left_s)
        self.on_notice()
        if notice.is_driver:
            self.stop.ask(f"the notice that node {notice.host} leaves")

    def lend(self, inputs: Inputs, directory: RunDirectory, display: Display) -> "Session":
        """A session of another run on these running pools, which only the lender closes.

        What the other run asks of an engine when it starts (model, precision, lengths) must be the same. A run that
        trains also needs `forget_weights`. Its door is opened by whoever borrows.
        """
        door = Door(directory.path, inputs.job, above=self.door)
        other = Session(inputs, directory, display, self.stop, self.machines, self.plan, door)
        needed = inputs.plan(self.machines).specs
        other.pools |= {name: pool for name, pool in self.pools.items() if name in needed}
        other.reservation = self.reservation
        other.lender = self
        return other

    def forget_weights(self) -> None:
        """Make the engines that follow the learner wait for this run's weights: they hold those of another run."""
        for done in self._answers("forget_weights"):
            ray.get(done)

    def refiners(self) -> dict[str, ActorHandle]:
        """The pool that refines the rows of each teacher."""
        return {name: self.pools.get(pool_of(name)) or self.pools["sampler"] for name in self.recipe.by_teacher}

    def judge(self) -> JudgeAt | None:
        """The judge with its pool, where a verifier of the run is one."""
        facts = self.inputs.judge
        if facts is None or JUDGE_POOL not in self.pools:
            return None
        context = context_of(self.recipe, facts)
        return JudgeAt.of(self.recipe.judge, self.inputs.judge_path, context, self.pools[JUDGE_POOL])

    def following(self) -> dict[str, str]:
        """The pools that get weights after every step -> whose: the "student"'s, or the "teacher"'s moving average."""
        whose = self.recipe.following
        return {name: whose[name] for name in self.pools if name in whose}

    def seats_again(self, *starting: Who, wait_s: float | None = None) -> None:
        """Make plan and reservation again from the nodes as they are, with seats for those who start.

        `starting` is of ("sampler", 1) and the like; all others keep their seats. If ranks of the learner start, they
        are all there are. Waits for nodes up to `wait_s`, by default cluster.wait_for_nodes_s, and not on a local
        cluster. Raises RunFailed with what is missing; plan and reservation are then as before.
        """
        local = is_local(self.recipe)
        before = self.display.shown()["phase"]
        with self.seating:
            self.reservation = seats_again(
                starting, self.reservation, self.recipe, say=self.display.phase,
                while_waiting=self.door.look if wait_s == 0.0 else self.check,  # who does not wait is not stopped here
                wait_s=0.0 if local else self.recipe.cluster.wait_for_nodes_s if wait_s is None else wait_s,
                machines=lambda known: machines_now(known, self.recipe),
            )  # fmt: skip
            self.plan = self.reservation.plan
            self.machines = self.plan.machines
            if self.lender:
                self.lender.plan, self.lender.reservation = self.plan, self.reservation
        if self.display.shown()["phase"] != before:  # it waited for a node
            self.display.phase(before)

    def seat_learner(self, most: int | None) -> int:
        """Seats for the learner's ranks, of which all before have ended; returns how many there are, `most` at most.

        They keep theirs where those are as good as others. Else there are as many as fit on the nodes as they are.
        Where not even the fewest of learner.workers fit, waits and raises as `seats_again` does.
        """
        with self.seating:  # the plan is another one for a moment
            before = self.plan
            ranks = len(before.seats_of(LEARNER))
            # Those on a node that leaves are left out when others are seated again: there may be fewer than must be.
            stay = self.recipe.learner.bounds.min <= ranks <= (ranks if most is None else most)
            if is_local(self.recipe) or (stay and not lost_ranks(before) and not self.ranks_if_seated_now()):
                return ranks
            found = self._most_ranks(most)
            ranks, self.reservation.plan = found or (self.recipe.learner.bounds.min, before)
            try:
                self.seats_again(*group_of(ranks))
            except BaseException:
                self.reservation.plan = before
                raise
            self.reservation.admit_learner()
            return ranks

    def ranks_if_seated_now(self) -> int | None:
        """How many ranks the learner would have if it were seated now. None where its seats are as good as others."""
        if is_local(self.recipe):
            return None
        there = {machine.node_id for machine in machines_now(self.machines, self.recipe)}
        ranks, nodes = len(self.plan.seats_of(LEARNER)), set(self.reservation.ranks())
        found = self._most_ranks(None)
        return found[0] if found and (found[0] > ranks or nodes - there) else None

    def _most_ranks(self, most: int | None) -> tuple[int, Placement] | None:
        machines = machines_now(self.plan.machines, self.recipe)
        return ranks_that_fit(
            self.plan, machines, self.recipe, lambda ranks: self.inputs.plan(machines, ranks=ranks), most
        )

    def _nodes(self) -> set[str]:
        return {self.plan.machines[seat.machine].node_id for seat in self.plan.seats}

    def drain(self) -> str | None:
        """Wait until the pools that get weights have answered what is to finish first; returns what went wrong."""
        for done in self._answers("drain"):
            try:
                ray.get(done)
            except Exception as e:
                self.look()  # a pool that has failed says why
                return reason(e)
        return None

    def _answers(self, method: str) -> Iterator[list[Any]]:
        """Those of the pools that get weights. `look` ends one that hangs, and then its next process is asked."""
        pending: list[Any] = [getattr(self.pools[name], method).remote() for name in self.following()]
        while pending:
            done, pending = ray.wait(pending, timeout=ANSWER_POLL_S)
            if not done:
                self.look()
            yield done

    def look(self) -> dict[str, dict]:
        """Show what the pools are doing; raises if one has failed or if the run was asked to stop."""
        statuses = self.statuses(self.check)
        for status in statuses.values():
            if status["failure"]:
                raise RunFailed(status["failure"])
        self._seat_the_homeless(statuses)
        self.check()
        return statuses

    def _seat_the_homeless(self, statuses: dict[str, dict], may_wait: bool = True) -> None:
        """Find other places for engines whose nodes have gone. A pool that has no other engine waits for a node."""
        if time.monotonic() - self.seated_s < SEAT_EVERY_S or not any(s["homeless"] for s in statuses.values()):
            return
        if not may_wait and has_dead_node(self.plan):  # the learner's group ends, and is seated before engines
            return
        for name, status in statuses.items():
            seated = False
            for number in status["homeless"]:
                try:
                    self.seats_again((name, number), wait_s=0.0)
                except RunFailed:
                    if seated or not may_wait or status["up"] or status["restarting"]:
                        continue  # the others of the pool go on, and it is tried again
                    self.seats_again((name, number))
                self.pools[name].seat.remote({number: self.reservation.places_by_number(name)[number]})
                seated = True
        self.seated_s = time.monotonic()

    def statuses(self, while_waiting: Callable[[], object] | None = None) -> dict[str, dict]:
        statuses = self.pulse.statuses(while_waiting or self.door.look)
        for name, status in statuses.items():
            self.figures.heard(name, status)
        self.display.pools(self.figures.last)
        return statuses

    def _tell_of_pool(self, name: str, said: str, facts: dict[str, Any]) -> None:
        self.directory.event("engine", said=said, pool=name, **facts)
        self.display.say(said)

    def evaluate(
        self, name: str, step: int, version: int, problems: pa.Table,
        while_waiting: Callable[[], object] | None = None,
        on_rows: Callable[[list[dict]], object] = lambda rows: None, of: str = "",
    ) -> stats.Score:  # fmt: skip
        """As `evaluated` of trd_ray.session.evaluating; `look` is called meanwhile where nothing else is given."""
        return evaluated(self, name, step, version, problems, while_waiting or self.look, on_rows, of)

    def warn(self, found: dict[str, str]) -> None:
        """Give each kind of warning once, on the screen and in train.log."""
        if said := self.display.warn(found):
            for text in said:
                self.directory.event("warning", said=text.removeprefix("warning: "))
            self.room.having("a warning", lambda: self._append_to_log("".join(f"{text}\n" for text in said)))

    def _append_to_log(self, text: str) -> None:
        with open(self.directory.path / "train.log", "a") as log:
            log.write(text)

    def close(self) -> None:
        self.figures.pools = {}  # what they did last stays to be seen, and not that they were stopped
        stop_pools(list(self.pools.values()), 0 if self.stop.hurried else STOP_POOLS_S, self.door.look)
        self.reservation.release()
