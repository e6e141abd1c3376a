"""A pool of engines: the Ray actor that holds the gate and routes requests; it receives weights like one engine would.

    client --admit--> gate --> a SERVING engine, as a lease --> client, who asks that engine itself
           --settle--> that engine has one request less
           --lost--> the fleet restarts the engine; the client asks to be admitted again

No request and no generation passes through here: see client.py for their way, leases.py for what counts as load.

The gate is here because the version is here. A lease of an engine is given only when all of this holds:
- the pool's version is at least the request's `min_version`;
- no weight update is under way, and no rest in which the learner has the GPUs (phases.py);
- an engine is SERVING, which means that it holds the pool's version.

A request for the base model of engines that take adapters (`Request.adapter=False`) waits for no version: any engine
that is up may answer it.

A restarted engine has the weights that the pool started with. When the version has moved on it is STALE, and the status
asks the learner to send the weights again (`needs_weights`).

When another run takes the pool over (`forget_weights`) all engines are STALE until that run's learner sends weights.

What a caller may wait for, and who ends the wait:

    the gate            an update that ends, an engine that is up; a failed or stopped pool (PoolFailed), a new run
                        (RunEnded). The next version takes as long as a training step does, so the deadline is the
                        run's: learner.step_timeout_s for the step, stream.stall_timeout_s for the rows
    an answer           the engine, within request_timeout_s; else the client reports it, and asks another engine
    an engine to be up  the fleet, within start_timeout_s; else the pool has failed
    a drain             the leases of its engines, within request_timeout_s; else the learner, who gives it up
    an update           the engines; else the learner, after sync.timeout_s, gives it up (update.py)
    a resize            the leases of the engines that leave, within request_timeout_s

At shutdown every wait ends with PoolFailed, then every engine process is stopped, then the actors (fleet.py). When the
pool's process dies, the next one goes on with the engines (keeper.py), and who waits here does not notice.
"""

import os
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import EngineSpec, PoolSpec
from trd_ray.engine.fleet import UP, Fleet, Life, State
from trd_ray.engine.fleet import PoolFailed as PoolFailed
from trd_ray.engine.keeper import Noted, begin_anew, has_lived_before, recall, start_engine, take_over
from trd_ray.engine.leases import Admission, Lease, Leases, Who
from trd_ray.engine.phases import KV_CACHE, InPhases, Phase
from trd_ray.engine.receiver import Receiver
from trd_ray.engine.reservation import Place
from trd_ray.engine.resizable import Resizable
from trd_ray.engine.routing import Routing
from trd_ray.engine.routing import least_loaded as least_loaded

Asked = tuple[Who, int | None, int | None]  # by whom, for at least which version, in which run
Prefixes = Sequence[int | None]
Over = tuple[int, int | None]  # the number of a lease, and the tokens of its answer if it had one


class RunEnded(RuntimeError):
    """The pool serves another run by now than the one whose request still waited at its gate."""


class Pool(Receiver, Resizable, InPhases):
    def __init__(self, spec: PoolSpec, keeper: Any = None):
        """`keeper` is an EngineKeeper's handle. Without one the engines end with this process."""
        self.spec = spec
        self.keeper = keeper
        self.fleet = Fleet(spec, lambda engine: self._actor(engine))
        self.fleet.homeless = lambda engine: self._has_lost_its_node(engine)
        self.fleet.may_start = self.may_start
        self.run = 0  # counts the runs that the pool has served before this one
        self.leases = Leases(spec.request_timeout_s)
        self.routing = Routing()
        self.at_gate: dict[Asked, int] = {}  # requests that wait, by the call that asks for them
        self.prefixes: dict[Asked, Prefixes] = {}  # theirs
        self.answered = {"requests": 0, "tokens": 0}
        if keeper is not None:
            self._recall(*ray.get(keeper.recall.remote()))

    def __repr__(self) -> str:  # how Ray's dashboard names it
        return f"Pool({self.spec.name})"

    def _recall(self, noted: Noted | None, made: dict[str, tuple[EngineSpec, Any]]) -> None:
        """Go on where an earlier process of this pool has died, if there was one."""
        self.noted = noted
        self.run, self.phase = (noted.run, noted.phase) if noted else (0, Phase.AWAKE)
        if made or noted:
            self.spec.places[:] = noted.places if noted else self.spec.places
            self.known = [(life, life.handle) for life in recall(self.fleet, noted, made)]
            for life, _ in self.known:
                life.restart = self.fleet.watch(take_over(self.fleet, life, self.phase))
            self.loads.begin()
        elif has_lived_before() and ray.get(self.keeper.has_died.remote()):  # else none was begun, and `start` comes
            self.phase = Phase.ASLEEP if self.spec.rests else Phase.AWAKE
            begin_anew(self.fleet)
            self.loads.begin()
        self.fleet.changed = self._note

    def _note(self) -> None:
        f = self.fleet
        staying = [life.spec.name for life in f.lives if life.state is not State.LEAVING]
        places = [*self.spec.places]
        noted = Noted(self.run, f.version, staying, f.next_index, f.restarts, places, self.phase)
        if noted != self.noted:
            self.noted = noted
            self.keeper.note.remote(noted)

    def _actor(self, spec: EngineSpec) -> Awaitable[ActorHandle] | ActorHandle:
        options = dict(self.spec.actor_options)
        if spec.place is not None:
            options["scheduling_strategy"] = self.spec.places[spec.place].strategy
        return self.keeper.make.remote(spec, options) if self.keeper else start_engine(spec, options)

    def _has_lost_its_node(self, spec: EngineSpec) -> bool:
        return spec.place is not None and not self.spec.places[spec.place].is_there()

    # Engines come and go

    async def start(self) -> None:
        await self.wake([KV_CACHE])  # a process that knows of none before it takes itself for asleep
        self.loads.begin()
        await self.fleet.start()

    async def seat(self, places: dict[int, Place]) -> None:
        """Start the engines whose nodes have gone at other places, by the numbers that `status` has told."""
        for life in self.fleet.those(State.RESTING):
            number = life.spec.place
            if life.homeless and number is not None and number in places:
                self.spec.places[number] = places[number]
                self.fleet.wake(life)
        await self.fleet.notify()

    async def shutdown(self) -> None:
        await self.fleet.shutdown()

    @property
    def restarts(self) -> int:
        return self.fleet.restarts

    # Requests

    async def admit(
        self,
        who: Who,
        min_version: int | None,
        run: int | None,
        count: int,
        over: list[Over],
        prefixes: Prefixes = (),
    ) -> Admission:
        """Leases for `count` requests, each of the engine that routing.py chooses, once the gate lets them through.

        `min_version` is None for requests that ask the base model. `count` may change meanwhile (`recount`). `run` is
        the run to which the requests belong, None for the one that the pool serves now. `over` is settled first.
        `prefixes` are of the first requests, in their order.
        """
        if self.leases.hear(who):
            await self.fleet.notify()
        await self.settle(over)
        if min_version is None and self.spec.engine.transfer_backend not in (None, "adapter"):
            raise ValueError(f"pool {self.spec.name} is sent whole weights, so its engines lose their base model")
        of = self.run if run is None else run
        key = (who, min_version, run)
        self.at_gate[key], self.prefixes[key] = count, prefixes
        try:
            await self.fleet.wait(lambda: self.run != of or not self.leases.knows(who) or bool(self._open(min_version)))
            # No await from the open gate to the last lease: the gate may close and loads change in one.
            count, prefixes = self.at_gate[key], self.prefixes[key]
        finally:
            self.at_gate.pop(key, None)
            self.prefixes.pop(key, None)
        if self.run != of:
            raise RunEnded(f"the run that asked pool {self.spec.name} has ended")
        if not self.leases.knows(who):
            raise RuntimeError(f"a client of pool {self.spec.name} was closed while it waited at the gate")
        wanted = [*prefixes[:count], *[None] * (count - len(prefixes))]
        lives = self.routing.choose(self._open(min_version), wanted)
        leases = [self.leases.give(life, who) for life in lives]
        new = self.leases.untold(leases, who)
        engines = {life.spec.start_id: life.handle for life in lives if life.spec.start_id in new}
        return Admission(leases, engines, of, self.spec.name, self.spec.request_timeout_s)

    async def recount(
        self, who: Who, min_version: int | None, run: int | None, count: int, prefixes: Prefixes = ()
    ) -> None:
        """So many requests of the client wait at the gate by now, if its call still does."""
        key = (who, min_version, run)
        if key in self.at_gate:
            self.at_gate[key], self.prefixes[key] = count, prefixes

    async def settle(self, over: list[Over]) -> None:
        """Leases are over."""
        waited_for = self.phase is Phase.SETTLING
        for number, tokens in over:
            given = self.leases.end(number)
            if given is None:
                continue
            waited_for |= self.draining or given.life.state in (State.UPDATING, State.LEAVING)
            if tokens is not None:
                given.life.answered()
                self.answered["requests"] += 1
                self.answered["tokens"] += tokens
        # Who waits at the gate does not wait for an answer, and is not woken for each.
        if waited_for or self.leases.expire():
            await self.fleet.notify()

    async def lost(self, lease: Lease, why: str, passing: bool, over: list[Over]) -> None:
        """The engine has died, or the connection to it broke (`passing`), before it answered.

        `over` is settled first: an engine that has answered may die once more.
        """
        await self.settle(over)
        try:
            life = next((life for life in self.fleet.lives if life.spec.start_id == lease.engine), None)
            given = self.leases.find(lease.number)
            if life:
                when_s = given.when_s if given else None
                await self.fleet.on_death(life, life.handle, why, passing=passing, asked_s=when_s)
        finally:
            self.leases.end(lease.number)
            await self.fleet.notify()

    async def leave(self, who: Who) -> None:
        """The client has ended; what it held and waited for is over."""
        self.leases.leave(who)
        await self.fleet.notify()

    def _open(self, min_version: int | None = 0) -> list[Life]:
        """The engines that may be given requests for `min_version`."""
        if self.phase is not Phase.AWAKE:
            return []
        if min_version is None:
            return self.fleet.those(*UP)
        if self.update or self.draining or self.fleet.version < min_version:
            return []
        return self.fleet.those(State.SERVING)

    async def _expire(self) -> None:
        if self.leases.expire():
            await self.fleet.notify()

    # Another run, and what others may see

    async def forget_weights(self) -> None:
        """Make ready for another run, whose versions may begin anew: no request is served before it sends weights.

        Requests of the run before that still wait at the gate fail with RunEnded.
        """
        await self.abort_weight_update()
        self.leases.forget()
        self.run += 1
        self.fleet.version = -1
        for life in self.fleet.those(State.SERVING):
            life.move(State.STALE)
        await self.fleet.notify()

    async def status(self) -> dict[str, Any]:
        await self._expire()
        fleet = self.fleet
        return {
            "pid": os.getpid(),
            "version": fleet.version,
            "phase": self.phase.value,
            "engines": len(fleet.lives),
            "up": len(fleet.those(*UP)),
            "running": sum(life.outstanding for life in fleet.lives),
            "waiting": sum(self.at_gate.values()),
            "resting": len(fleet.those(State.RESTING)),
            "homeless": [life.spec.place for life in fleet.those(State.RESTING) if life.homeless],
            "restarts": fleet.restarts,
            "restarting": not fleet.failure and any(life.restart for life in fleet.those(State.STARTING)),
            "updating": bool(self.update or self.coming) or self.draining,
            "failure": fleet.failure,
            # An engine that is up but holds other weights than the pool's version: the learner must send them again.
            "needs_weights": not (self.update or self.coming) and bool(fleet.those(State.STALE)),
            "lives": [life.shown() for life in fleet.lives],
            "news": list(fleet.news),
            **self.answered,
            **self.loads.shown(),
        }
