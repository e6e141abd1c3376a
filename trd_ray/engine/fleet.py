"""The lives of a pool's engines: five states, who moves an engine between them, and when one is started again.

Policy here, mechanism there. This file decides when an engine is started, restarted and stopped. `actor.py` knows how,
and `deaths.py` knows what a death looks like. The pool decides which engine gets a request, an update decides which one
gets weights, and both read the states that are kept here.

    STARTING  its process is being started, and hears nothing yet
    STALE     up, but its weights are not those of the pool's version: it waits for the learner to send them
    SERVING   up with the weights of the pool's version: it may be given requests
    UPDATING  takes part in the weight update under way
    LEAVING   is given nothing more, and is stopped once it has answered what it holds

A new engine is STARTING, put there by `start` or by a `resize` upwards. Then:

    STARTING -> SERVING    bring-up: it is up, and engines start with the weights of the pool's version
    STARTING -> STALE      bring-up: it is up, and the pool's version has moved on since its first start
    STALE SERVING -> UPDATING    the learner, who pauses the pool: a weight update begins
    UPDATING -> SERVING    the learner, who finishes the update, or gives it up early: this engine was SERVING before
    UPDATING -> STALE      the learner, who gives it up: this engine was STALE before, or its weights may be mixed
    SERVING -> STALE       an update that ended without it (it came up meanwhile), or another run that takes the pool
    STALE SERVING UPDATING -> STARTING    a death that a request or an update has met, weights that may be mixed, or a
                                          call that waits for a dead peer
    STARTING STALE SERVING UPDATING -> LEAVING    `resize` downwards, or upwards when a new engine could not start

Any other move is a bug and raises. LEAVING is the end: such an engine that dies is not missed, since the clients ask
another one for what it held.

The limits of a restart:
- An engine that dies twice without an answer in between fails the pool, with the end of its log. A third start would
  take minutes to say the same.
- A failure that may pass (a broken connection, a lost answer) counts as a death when the engine does not answer to
  `check_health`, or at the fourth such failure in a row.
- An engine that does not start within `start_timeout_s` fails the pool. In a resize it fails the resize only.

What this is not, and why:
- Ray's `max_restarts`: Ray would bring an engine back behind the same handle, with the weights it once started with.
  Requests would reach it before anybody had noticed. Here a restart is a new handle, so a late answer is told apart.
- A loop that polls for health: requests and updates meet a dead engine by themselves, and an idle one that died is met
  by the check before the next update. One more opinion would have to be reconciled with theirs.
- A state DEAD: an engine that is found dead is started again in that moment, or the pool has failed.

At shutdown everyone who waits is told (`PoolFailed`), and restarts under way are cancelled. Then every engine is asked
to stop, and its actor is killed. When the pool's own process is killed, its engines end with it.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import EngineSpec, PoolSpec, reason, result
from trd_ray.engine.deaths import HEALTH_TIMEOUT_S, answers, log_tail

STOP_TIMEOUT_S = 30
DEATH_LIMIT = 2  # deaths in a row at which the pool fails
PASSING_LIMIT = 3  # failures in a row of an engine that answers, before it is taken for dead


class PoolFailed(RuntimeError):
    """The pool cannot go on; the message says why and ends with the log of the engine that died."""


class State(StrEnum):
    STARTING = auto()
    STALE = auto()
    SERVING = auto()
    UPDATING = auto()
    LEAVING = auto()


UP = (State.STALE, State.SERVING, State.UPDATING)
MOVES = {
    State.STARTING: {State.SERVING, State.STALE, State.LEAVING},
    State.STALE: {State.UPDATING, State.STARTING, State.LEAVING},
    State.SERVING: {State.UPDATING, State.STALE, State.STARTING, State.LEAVING},
    State.UPDATING: {State.SERVING, State.STALE, State.STARTING, State.LEAVING},
    State.LEAVING: set(),
}


@dataclass(eq=False)
class Life:
    """One engine of the fleet through all its restarts; each start is another actor, with another handle."""

    spec: EngineSpec
    handle: ActorHandle
    state: State = State.STARTING
    outstanding: int = 0  # leases of this start of it that are not over
    deaths: int = 0  # in a row
    passing: int = 0  # failures in a row after which it still answered
    well_s: float = 0.0  # when it last answered after such a failure, on the monotonic clock
    check: asyncio.Task | None = None  # whether it answers, while that is being asked
    restart: asyncio.Task | None = None  # its last one, under way while the state is STARTING

    def move(self, to: State) -> None:
        if to not in MOVES[self.state]:
            raise RuntimeError(f"engine {self.spec.name} cannot go from {self.state} to {to}: see engine/fleet.py")
        self.state = to

    def answered(self) -> None:
        self.deaths = self.passing = 0


class Fleet:
    def __init__(self, spec: PoolSpec, make_actor: Callable[[EngineSpec], ActorHandle]):
        self.spec, self.make_actor = spec, make_actor
        self.version = spec.engine.version  # of the weights that SERVING engines hold
        self.lives: list[Life] = []
        self.generation = 0  # changes whenever the set of engine processes does
        self.restarts = 0
        self.failure: str | None = None
        self._watches: set[asyncio.Task] = set()
        self._changed = asyncio.Condition()
        self._resizing = asyncio.Lock()
        self._next_index = 0

    def those(self, *states: State) -> list[Life]:
        return [life for life in self.lives if life.state in states]

    # Waiting for a change

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds, without another await in between; raises PoolFailed when the pool has failed.

        This wait has no deadline of its own: who ends it stands where it is called.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.failure or condition())
        if self.failure:
            raise PoolFailed(self.failure)

    async def wait_at_most(self, timeout_s: float, what: str, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait(condition)
        except TimeoutError:
            raise TimeoutError(f"pool {self.spec.name} waited {timeout_s:.0f} s for {what}") from None

    async def notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def fail(self, message: str) -> None:
        self.failure = self.failure or message
        await self.notify()

    # Start and restart

    async def start(self) -> None:
        """Start all engines; those that share a GPU start one after another."""
        for _ in range(self.spec.replicas):
            self.lives.append(self._new())
        try:
            for turn in sorted({self._turn(life) for life in self.lives}):
                await asyncio.gather(*(self._bring_up(life) for life in self.lives if self._turn(life) == turn))
        except PoolFailed as e:
            await self.fail(str(e))
            raise

    def _new(self) -> Life:
        name = f"{self.spec.name}-{self._next_index}"
        taken = {life.spec.place for life in self.lives}
        place = next((i for i in range(len(self.spec.places)) if i not in taken), None)
        self._next_index += 1
        log = Path(self.spec.engine.log_path) / f"{name}.log"
        spec = replace(self.spec.engine, name=name, log_path=str(log), start_id=uuid.uuid4().hex, place=place)
        return Life(spec, self.make_actor(spec))

    def _turn(self, life: Life) -> int:
        return 0 if life.spec.place is None else self.spec.places[life.spec.place].turn

    async def _bring_up(self, life: Life) -> None:
        """Wait until the engine answers; it serves at once if it started with the weights of the pool's version."""
        try:
            await asyncio.wait_for(result(life.handle.start.remote()), self.spec.start_timeout_s)
        except Exception as e:
            if life.state is State.LEAVING:
                return
            if isinstance(e, TimeoutError):
                problem = (
                    f"did not start within {self.spec.start_timeout_s:.0f} s (it needs "
                    f"{_needs(self.spec.actor_options)}): raise {self.spec.name}.start_timeout_s or free the resources"
                )
            else:
                problem = f"failed to start: {reason(e)}"
            raise PoolFailed(f"engine {life.spec.name} {problem}\n{log_tail(life.spec)}") from None
        if life.state is State.LEAVING:
            return
        self.generation += 1
        life.move(State.SERVING if self.version == self.spec.engine.version else State.STALE)
        await self.notify()

    async def on_death(
        self, life: Life, handle: ActorHandle, why: str, *, passing: bool = False, asked_s: float | None = None
    ) -> None:
        """Restart the engine once; concurrent callers of a dead engine meet here, and the first one acts.

        After a `passing` failure it is asked first whether it lives. `asked_s` is the monotonic time at which it was
        given what failed.
        """
        if passing and life.handle is handle and await self._passes(life, asked_s):
            return
        if life.handle is not handle or self.failure or life.state is State.LEAVING:
            return
        life.deaths += 1
        if life.deaths < DEATH_LIMIT:
            return await self.restart(life)
        await self.fail(
            f"engine {life.spec.name} died twice in a row ({why}); the end of its log:\n{log_tail(life.spec)}"
        )

    async def _passes(self, life: Life, asked_s: float | None) -> bool:
        """Whether the engine still answers; all the requests that fail together ask, and count, once."""
        if asked_s is not None and asked_s < life.well_s:
            return True  # one of those that failed together, heard of after the check
        if life.check is None:
            life.passing += 1
            life.check = asyncio.create_task(answers(life.handle))
        check = life.check
        try:
            well = await asyncio.shield(check) and life.passing <= PASSING_LIMIT
            if well:
                life.well_s = time.monotonic()
            return well
        finally:
            if life.check is check:
                life.check = None

    async def restart(self, life: Life) -> None:
        """Kill the engine and start it again; one that is leaving is only killed."""
        ray.kill(life.handle)
        if life.state is State.LEAVING:
            return
        life.move(State.STARTING)
        self.generation += 1
        self.restarts += 1
        life.outstanding = 0
        life.spec = replace(life.spec, start_id=uuid.uuid4().hex)
        life.handle = self.make_actor(life.spec)
        life.restart = asyncio.create_task(self._bring_up_again(life))
        await self.notify()

    async def _bring_up_again(self, life: Life) -> None:
        try:
            await self._bring_up(life)
        except PoolFailed as e:
            await self.fail(str(e))

    def watch(self, watching: Coroutine[Any, Any, None]) -> None:
        """Go on with it while the caller does something else."""
        task = asyncio.create_task(watching)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    # Which weights the engines hold

    def serve(self, version: int, beside: Collection[Life] = ()) -> None:
        """The engines that were UPDATING hold `version` from now on, and no others do.

        `beside` are those that got it beside the adapter that they were SERVING.
        """
        self.version = version
        for life in self.lives:
            if life.state is State.UPDATING:
                life.move(State.SERVING)
            elif life.state is State.SERVING and life not in beside:
                life.move(State.STALE)

    # Resize and shutdown

    async def resize(self, replicas: int, may_stop: Callable[[], bool]) -> None:
        """Grow or shrink to so many engines; those that leave answer what they hold, and stop when `may_stop`."""
        async with self._resizing:
            # One that an earlier resize could not stop in time is LEAVING already, and counts for nothing.
            staying = [life for life in self.lives if life.state is not State.LEAVING][:replicas]
            leaving = [life for life in self.lives if life not in staying]
            for life in leaving:
                self._leave(life)
            await self.wait_at_most(
                self.spec.request_timeout_s + HEALTH_TIMEOUT_S,
                "leaving engines to answer what they hold, and a weight update to end: resize it again",
                lambda: may_stop() and not any(life.outstanding for life in leaving),
            )
            self.lives = list(staying)
            new = []
            for _ in range(replicas - len(staying)):
                new.append(self._new())
                self.lives.append(new[-1])
            try:
                await asyncio.gather(*map(_stop, leaving), *map(self._bring_up, new))
            except PoolFailed:
                self.lives = [life for life in self.lives if life not in new]
                for life in new:
                    self._leave(life)
                    ray.kill(life.handle)
                raise

    def _leave(self, life: Life) -> None:
        if life.state is State.LEAVING:
            return
        if life.state is State.STARTING:  # it holds no request, and would not hear that it is to stop
            ray.kill(life.handle)
        life.move(State.LEAVING)
        self.generation += 1

    async def shutdown(self) -> None:
        await self.fail("the pool was shut down")
        for task in [*self._watches, *(life.restart for life in self.lives if life.restart)]:
            task.cancel()
        await asyncio.gather(*map(_stop, self.lives))


async def _stop(life: Life) -> None:
    if life.state is not State.STARTING:  # one that is starting would not hear it
        with contextlib.suppress(Exception):
            await asyncio.wait_for(result(life.handle.shutdown.remote()), STOP_TIMEOUT_S)
    ray.kill(life.handle)


def _needs(options: dict[str, Any]) -> str:
    return f"{options.get('num_cpus', 0):g} CPUs and {options.get('num_gpus', 0):g} GPUs"
