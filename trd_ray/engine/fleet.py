"""The lives of a pool's engines: six states, who moves an engine between them, and when one is started again.

Policy here, mechanism there. This file decides when an engine is started, restarted and stopped. `actor.py` knows how,
and `deaths.py` knows what a death looks like. The pool decides which engine gets a request, an update decides which one
gets weights, and both read the states that are kept here.

    STARTING  its process is being started, or will be once its pool wakes (phases.py); it hears nothing yet
    RESTING   could not come back, and is given up for a while: it has no process
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
    SERVING -> STALE       an update that ended without it (it came up meanwhile), a rest that drops weights, a new run
    STALE SERVING UPDATING -> STARTING    a death that a request or an update has met, weights that may be mixed, or a
                                          call that waits for a dead peer
    STARTING STALE SERVING UPDATING -> RESTING    it could not start, has died twice without an answer in between, or
                                                  its node has gone
    RESTING -> STARTING    its rest is over, or it is given another place
    STARTING RESTING STALE SERVING UPDATING -> LEAVING    `resize` downwards, or upwards when a new engine could not
                                                          start
Any other move is a bug and raises. LEAVING is the end: such an engine that dies is not missed, since the clients ask
another one for what it held.

How a death is noticed, whoever is first: a request meets it, or an update, or the pulse that every engine is asked
for every few seconds (`death_of`). So it is also noticed of an engine that is idle, or that is stopped and not dead.

The limits of a restart:
- An engine that dies twice without an answer in between rests, and so does one that cannot start or does not start
  within `start_timeout_s`. A third start at once would take minutes to say the same. The others go on. Each rest is
  twice as long as the one before, until the engine has answered something.
- An engine whose node has gone rests until the run gives it another place (`Pool.seat`), or for SEAT_S at most.
- The pool fails, with the end of the log, when an engine would rest and no other is up, starting or without a place.
- A failure that may pass (a broken connection, a lost answer) counts as a death when the engine does not answer to
  `check_health`, or at the fourth such failure in a row.
- In a resize an engine that does not start fails the resize only.

What this is not, and why:
- Ray's `max_restarts`: Ray would bring an engine back behind the same handle, with the weights it once started with.
  Requests would reach it before anybody had noticed. Here a restart is a new handle, so a late answer is told apart.
- A state DEAD: an engine that is found dead is started again in that moment, or rests, or the pool has failed.

At shutdown everyone who waits is told (`PoolFailed`), and restarts under way are cancelled. Then every engine is asked
to stop, and its actor is killed. When the pool's own process is killed, the next one goes on with them (keeper.py).
"""

import asyncio
import inspect
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from trd_ray.engine.actor import EngineSpec, PoolSpec, reason, result
from trd_ray.engine.deaths import DEATHS, HEALTH_TIMEOUT_S, answers, death_of, log_tail
from trd_ray.engine.life import MOVES as MOVES
from trd_ray.engine.life import UP, Life, State, needs
from trd_ray.errors import RunFailed

DEATH_LIMIT = 2  # deaths in a row after which an engine rests
REST_S, LONGEST_REST_S = 30.0, 960.0
SEAT_S = 3600.0  # that an engine whose node has gone waits for another place: a run looks for one between its steps
NEWS = 100  # entries that are kept for who asks
PASSING_LIMIT = 3  # failures in a row of an engine that answers, before it is taken for dead


class PoolFailed(RunFailed):
    """The pool cannot go on; the message says why and ends with the log of the engine that died."""


class Fleet:
    def __init__(self, spec: PoolSpec, make_actor: Callable[[EngineSpec], Awaitable[ActorHandle] | ActorHandle]):
        self.spec, self.make_actor = spec, make_actor
        self.version = spec.engine.version  # of the weights that SERVING engines hold
        self.lives: list[Life] = []
        self.generation = 0  # changes whenever the set of engine processes does
        self.restarts = 0
        self.failure: str | None = None
        self.news: deque[dict[str, Any]] = deque(maxlen=NEWS)  # what became of engines; the newest is the last
        self.homeless: Callable[[EngineSpec], bool] = lambda spec: False  # its place is on a node that has gone
        self.changed: Callable[[], object] = lambda: None  # called whenever those who wait are
        self.may_start: Callable[[], bool] = lambda: True  # else engines wait in STARTING, without a process
        self._watches: set[asyncio.Task] = set()
        self._changed = asyncio.Condition()
        self._resizing = asyncio.Lock()
        self.next_index = 0

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
        self.changed()
        async with self._changed:
            self._changed.notify_all()

    async def fail(self, message: str) -> None:
        self.failure = self.failure or message
        await self.notify()

    # Start and restart

    async def start(self) -> None:
        """Start all engines; those that share a GPU start one after another. Raises PoolFailed if none is up then."""
        known = list(self.lives)  # those of an earlier process of the pool, which are taken over meanwhile
        for _ in range(self.spec.replicas - len(known)):
            self.lives.append(self._new())
        new = [life for life in self.lives if life not in known]
        for turn in sorted({self._turn(life) for life in new}):
            await asyncio.gather(*(self.bring_up_or_rest(life) for life in new if self._turn(life) == turn))
        await self.wait(lambda: not any(life.state is State.STARTING for life in known))

    def continues(self, next_index: int) -> None:
        """The lives are those of an earlier process of the pool: no name is given twice, nor a generation."""
        self.next_index = next_index
        self.generation = time.time_ns()

    def _new(self) -> Life:
        life = self.new(f"{self.spec.name}-{self.next_index}")
        self.next_index += 1
        return life

    def new(self, name: str) -> Life:
        taken = {life.spec.place for life in self.lives}
        place = next((i for i, place in enumerate(self.spec.places) if place is not None and i not in taken), None)
        log = Path(self.spec.engine.log_path) / f"{name}.log"
        spec = replace(self.spec.engine, name=name, log_path=str(log), start_id=uuid.uuid4().hex, place=place)
        return Life(spec)

    def _turn(self, life: Life) -> int:
        return 0 if life.spec.place is None else self.spec.places[life.spec.place].turn

    async def _bring_up(self, life: Life) -> None:
        """Start it, and wait until it answers; it serves at once if it has the weights of the pool's version then.

        One that dies meanwhile is started once more. Raises PoolFailed if it does not come up.
        """
        while problem := await self._start_once(life):
            if life.state is State.LEAVING:
                return
            life.deaths += isinstance(problem, DEATHS)
            if not isinstance(problem, DEATHS) or life.deaths >= DEATH_LIMIT:
                raise self._not_started(life, problem)
        if life.state is State.LEAVING:
            return
        self.generation += 1
        life.move(State.SERVING if self.version == self.spec.engine.version else State.STALE)
        if life.restarts:
            self.tell(life, "is up again")
        await self.notify()

    def _not_started(self, life: Life, problem: Exception) -> PoolFailed:
        if isinstance(problem, TimeoutError):
            why = (
                f"did not start within {self.spec.start_timeout_s:.0f} s (it needs "
                f"{needs(self.spec.actor_options)}): raise {self.spec.name}.start_timeout_s or free the resources"
            )
        else:
            why = f"failed to start: {life.why or reason(problem)}"
        life.why = why
        return PoolFailed(f"engine {life.spec.name} {why}\n{log_tail(life.spec)}")

    async def _start_once(self, life: Life) -> Exception | None:
        """What went wrong, if anything did."""
        life.kill()
        life.handle, life.why = None, ""
        life.spec = replace(life.spec, start_id=uuid.uuid4().hex)
        try:
            await self.wait(lambda: self.may_start() or life.state is State.LEAVING)
            async with asyncio.timeout(self.spec.start_timeout_s):
                made = self.make_actor(life.spec)
                life.handle = handle = await made if inspect.isawaitable(made) else made
                if life.state is State.LEAVING:
                    life.kill()
                self.watch(self.follow(life, handle))
                await result(handle.start.remote())
        except Exception as e:
            return e
        return None

    async def follow(self, life: Life, handle: ActorHandle) -> None:
        """Wait for the end of this start of an engine, also while it is idle."""
        updates, is_up = lambda: life.state is State.UPDATING, lambda: life.handle is handle and life.state in UP
        why = await death_of(handle, self.spec.heartbeat_s, updates, is_up)
        if life.handle is not handle:
            return
        if life.state is State.STARTING:
            life.why = why
            life.kill()  # who waits for its start hears of that
        elif life.state is State.LEAVING:
            life.kill()  # what it holds is asked of another engine
        else:
            await self.on_death(life, handle, why)

    async def bring_up_or_rest(self, life: Life) -> None:
        problem = ""
        if not self.homeless(life.spec):
            try:
                return await self._bring_up(life)
            except PoolFailed as e:
                problem = str(e)
        if life.state is not State.LEAVING and self.homeless(life.spec):  # also since it began to start there
            life.homeless, life.why = True, "its node has gone"
            return await self._let_rest(life, SEAT_S)
        await self._give_up(life, problem)

    async def _give_up(self, life: Life, problem: str) -> None:
        """The engine rests; a pool that has no other engine fails with the problem."""
        if self.failure or life.state is State.LEAVING:
            return
        others = [other for other in self.those(*UP, State.STARTING, State.RESTING) if other is not life]
        if not any(other.state is not State.RESTING or other.homeless for other in others):
            life.kill()
            return await self.fail(problem)
        life.rest_s = min(LONGEST_REST_S, 2 * life.rest_s or REST_S)
        await self._let_rest(life, life.rest_s)

    async def _let_rest(self, life: Life, seconds: float) -> None:
        life.kill()
        life.handle = None
        life.outstanding = 0
        life.spec = replace(life.spec, start_id=uuid.uuid4().hex)  # leases of its last start count no longer
        life.move(State.RESTING)
        self.generation += 1
        self.tell(life, "rests", seconds=seconds)
        self.watch(self._rest(life, seconds))
        await self.notify()

    async def _rest(self, life: Life, seconds: float) -> None:
        rest = life.spec.start_id
        await asyncio.sleep(seconds)
        if life.spec.start_id == rest and life.state is State.RESTING and not self.failure:
            if life.homeless:  # nobody had a place for it: it goes wherever Ray has room
                life.spec = replace(life.spec, place=None)
            self.wake(life)

    def wake(self, life: Life) -> None:
        """End its rest. The next death makes it rest again."""
        life.homeless = False
        life.deaths = DEATH_LIMIT - 1
        self._start_again(life)

    def tell(self, life: Life, what: str, **facts: Any) -> None:
        told = {"engine": life.spec.name, "what": what, "why": life.why, "when": time.time()}
        self.news.append(told | facts)

    async def on_death(
        self, life: Life, handle: ActorHandle, why: str, *, passing: bool = False, asked_s: float | None = None
    ) -> None:
        """Restart the engine once; concurrent callers of a dead engine meet here, and the first one acts.

        After a `passing` failure it is asked first whether it lives. `asked_s` is the monotonic time at which it was
        given what failed.
        """
        if passing and life.handle is handle and await self._passes(life, asked_s):
            return
        if life.handle is not handle or self.failure or life.state not in UP:
            return
        life.deaths += 1
        life.why = why
        if life.deaths < DEATH_LIMIT:
            return await self.restart(life)
        log = log_tail(life.spec)
        await self._give_up(life, f"engine {life.spec.name} died twice in a row ({why}); the end of its log:\n{log}")

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
        life.kill()
        if life.state is State.LEAVING:
            return
        self._start_again(life)
        await self.notify()

    def _start_again(self, life: Life) -> None:
        life.move(State.STARTING)
        self.generation += 1
        self.restarts += 1
        life.restarts += 1
        life.outstanding = 0
        self.tell(life, "restarts")
        life.handle = None
        life.spec = replace(life.spec, start_id=uuid.uuid4().hex)
        life.restart = asyncio.create_task(self.bring_up_or_rest(life))

    def watch(self, watching: Coroutine[Any, Any, None]) -> asyncio.Task:
        """Go on with it while the caller does something else."""
        task = asyncio.create_task(watching)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return task

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
        """Grow or shrink to so many engines; the newest leave, once they have answered all and `may_stop`."""
        async with self._resizing:
            # One that an earlier resize could not stop in time is LEAVING already, and counts for nothing.
            could_stay = [life for life in self.lives if life.state is not State.LEAVING]
            chosen = sorted(could_stay, key=lambda life: life.state not in UP)[:replicas]  # those that are up stay
            staying = [life for life in could_stay if life in chosen]
            leaving = [life for life in self.lives if life not in staying]
            for life in leaving:
                self._leave(life)
            await self.notify()
            await self.wait_at_most(
                self.spec.request_timeout_s + HEALTH_TIMEOUT_S,
                "leaving engines to answer what they hold, and a weight update to end: resize it again",
                lambda: not leaving or (may_stop() and not any(life.outstanding for life in leaving)),
            )
            self.lives = list(staying)
            new = []
            for _ in range(replicas - len(staying)):
                new.append(self._new())
                self.lives.append(new[-1])
            await asyncio.gather(*(life.stop() for life in leaving))
        try:  # another resize need not wait for this
            for turn in sorted({self._turn(life) for life in new}):
                await asyncio.gather(*(self._bring_up(life) for life in new if self._turn(life) == turn))
        except PoolFailed:
            self.lives = [life for life in self.lives if life not in new]
            for life in new:
                self._leave(life)
                life.kill()
            raise

    def _leave(self, life: Life) -> None:
        if life.state is State.LEAVING:
            return
        if life.state is State.STARTING:  # it holds no request, and would not hear that it is to stop
            life.kill()
        life.move(State.LEAVING)
        self.generation += 1

    async def shutdown(self) -> None:
        await self.fail("the pool was shut down")
        for task in [*self._watches, *(life.restart for life in self.lives if life.restart)]:
            task.cancel()
        await asyncio.gather(*(life.stop() for life in self.lives))
