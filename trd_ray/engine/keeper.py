"""The owner of a pool's engines. They live on when the pool's process dies, and the next one goes on with them.

    pool --make(spec, options)--> keeper: starts the engine's actor, keeps its handle --handle--> pool
         --note(...)-->           keeper: run, version and names of the engines, as they were last
    the pool's next process --recall()--> both; then `take_over` asks every engine what it holds

Ray ends an actor when the process that started it ends. So not the pool starts the engines, but this actor does, which
does nothing else. Ray starts the pool's process again, and makes the calls again that nobody had answered: clients wait
a little longer at the gate, and what they have asked of an engine is answered meanwhile.

- An engine that answers serves on, if it holds the version that the pool served.
- One that was in a weight update is started again, and so is one that does not answer.
- One that rests goes on resting, if the pool was not awake.
- One that never had an actor, since its node had gone, is started where it has a place.
- When this actor dies, its engines end with it. The pool sees them die, and starts them again by the next process here.
- When both have died, nobody knows anything: the pool starts all its engines, and asks for the weights.
- It ends with its pool: nobody else has its handle. Its engines end then too, however the run ended.
"""

import asyncio
import contextlib
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import Engine, EngineSpec, StartFailed, reason, result
from trd_ray.engine.fleet import Fleet
from trd_ray.engine.life import Life, State
from trd_ray.engine.phases import Phase

ENGINE_CALLS = 100_000  # that may be under way in one engine, so that a pause never queues behind requests


class Noted(NamedTuple):
    """What a pool knows and its engines do not."""

    run: int
    version: int
    engines: list[str]  # their names, of those that do not leave
    number: int  # of the next new one
    restarts: int
    places: list[Any]  # of engines, as they are after all changes of their number
    phase: Phase = Phase.AWAKE


class EngineKeeper:
    """The actor class. It answers one call after the other."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[EngineSpec, ActorHandle]] = {}
        self.noted: Noted | None = None

    def make(self, spec: EngineSpec, options: dict[str, Any]) -> ActorHandle:
        """Start an engine. One of that name that an earlier call has started ends."""
        if spec.name in self.made:
            with contextlib.suppress(Exception):
                ray.kill(self.made[spec.name][1])
        handle = start_engine(spec, options)
        self.made[spec.name] = spec, handle
        return handle

    def note(self, noted: Noted) -> None:
        self.noted = noted

    def pulse(self) -> None:
        """It answers, so it lives."""

    def recall(self) -> tuple[Noted | None, dict[str, tuple[EngineSpec, ActorHandle]]]:
        return self.noted, self.made

    def has_died(self) -> bool:
        """Whether an earlier process of it may have made engines of which this one knows nothing."""
        return has_lived_before()


def start_engine(spec: EngineSpec, options: dict[str, Any]) -> ActorHandle:
    actor: Any = ray.remote(concurrency_groups={"pulse": 1})(Engine)  # pyright: ignore[reportCallIssue]
    name = f"{spec.name}.{spec.start_id[:8]}"  # no other start has it, also not one that is still ending
    return actor.options(name=name, max_concurrency=ENGINE_CALLS, **options).remote(spec)


def recall(fleet: Fleet, noted: Noted | None, made: dict[str, tuple[EngineSpec, Any]]) -> list[Life]:
    """Give the fleet the engines that an earlier process of its pool had; nothing is asked of them yet."""
    for name, (spec, handle) in made.items():
        if noted is None or name in noted.engines:
            fleet.lives.append(Life(spec, handle))
        else:  # it was leaving; what it held is asked of another one
            with contextlib.suppress(Exception):
                ray.kill(handle)
    if noted is not None:
        for name in [name for name in noted.engines if name not in made]:
            fleet.lives.append(fleet.new(name))
        fleet.version, fleet.restarts = noted.version, noted.restarts
    last = max((int(name.rpartition("-")[2]) for name in made), default=-1)
    fleet.continues(max(last + 1, noted.number if noted else 0))
    return list(fleet.lives)


def begin_anew(fleet: Fleet) -> None:
    """Start the engines of a pool that its earlier process had and nobody knows of any more."""
    fleet.continues(0)
    if fleet.spec.engine.transfer_backend is not None:
        fleet.version = -1  # the learner sends what it has
    fleet.watch(fleet.start())


def has_lived_before() -> bool:
    """Whether this process is a later one of its actor."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


async def take_over(fleet: Fleet, life: Life, phase: Phase = Phase.AWAKE) -> None:
    """Go on with an engine of an earlier process of the pool, or start it again. `phase` is the pool's."""
    handle = life.handle
    if handle is None:  # it never had an actor
        return await fleet.bring_up_or_rest(life)
    fleet.watch(fleet.follow(life, handle))
    try:
        async with asyncio.timeout(fleet.spec.start_timeout_s):  # it may be starting still
            condition = await result(handle.condition.remote())
            if condition.mixed:
                raise StartFailed("its pool died in a weight update")
            if condition.rests and phase is Phase.AWAKE:
                raise StartFailed("it rests, and its pool does not know how long")
            if condition.paused and not condition.rests and phase is not Phase.ASLEEP:
                await result(handle.resume.remote())
    except Exception as e:
        if life.state is State.STARTING and life.handle is handle and not fleet.failure:
            fleet.restarts += 1
            life.restarts += 1
            life.why = reason(e)
            fleet.tell(life, "restarts")
            await fleet.bring_up_or_rest(life)
        return
    if life.state is State.STARTING and life.handle is handle:
        fleet.generation += 1
        life.move(State.SERVING if condition.version == fleet.version else State.STALE)
        fleet.tell(life, "goes on after the death of its pool")
        await fleet.notify()
