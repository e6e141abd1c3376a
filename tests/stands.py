"""For tests of pools without Ray: a pool in this process, whose engines are stand-ins, and a client of it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError

from serving import pool_spec
from trd_ray.engine import client as client_module
from trd_ray.engine.actor import Condition, Generation, Request, in_parts
from trd_ray.engine.client import Client
from trd_ray.engine.fleet import Fleet, State
from trd_ray.engine.pool import Pool


class Ref:
    """The answer of an actor: who no longer waits for it does not stop the actor, as `ray.cancel` does."""

    def __init__(self, call: Coroutine):
        self.task = asyncio.create_task(call)

    def __await__(self) -> Generator:
        return asyncio.shield(self.task).__await__()


class Near:
    """A pool in this process, called as one in a Ray actor is. It keeps what passes through it."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.calls: list[tuple[str, tuple]] = []
        self.answers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any) -> Any:
            self.answers.append(answer := await getattr(self.pool, name)(*arguments))
            return answer

        def remote(*arguments: Any) -> Ref:
            self.calls.append((name, arguments))
            return Ref(method(*arguments))

        return SimpleNamespace(remote=remote)

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


ASK = Request([5], seed=0)
ANSWER = [Generation(np.array([5]), "a", "stop", np.array([-0.1]), 0, "e", 0.0, 0.0)]


class Method:
    def __init__(self, engine: "Stand", name: str):
        self.engine, self.name = engine, name

    def remote(self, *arguments: Any) -> Any:
        answer = Ref(self.engine.call(self.name, arguments))
        return parts_of(answer) if self.name == "generate" else answer


class Part:
    """One of several values of an answer."""

    def __init__(self, answer: Ref, place: int):
        self.answer, self.place, self.task = answer, place, answer.task

    def __await__(self) -> Generator:
        return (yield from self.answer.__await__())[self.place]


def parts_of(answer: Ref) -> list[Part]:
    """The references of a method that returns in three parts."""
    return [Part(answer, place) for place in range(3)]


class Stand:
    """What answers in an engine's place: every method succeeds, fails as told, or waits until it is let go."""

    def __init__(self, name: str):
        self.name = name
        self.calls: list[str] = []
        self.quiet_s, self.pulses = 0.0, 0
        self.condition_ = Condition(0, paused=False, mixed=False)
        self.asked: list[Request] = []
        self.failing: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.killed = asyncio.Event()

    def __getattr__(self, method: str) -> Method:
        return Method(self, method)

    def hold(self, method: str) -> asyncio.Event:
        return self.held.setdefault(method, asyncio.Event())

    async def call(self, method: str, arguments: tuple) -> Any:
        if method == "pulse":
            self.pulses += 1
        else:
            self.calls.append(method)
        if method == "generate":
            self.asked += arguments[0]
        let_go = self.held.get(method)
        if let_go:
            waits = [asyncio.create_task(let_go.wait()), asyncio.create_task(self.killed.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self.calls.append("cancelled")
                raise
        if self.killed.is_set():
            raise ActorDiedError()
        if method in self.failing:
            raise self.failing[method]
        if method == "pulse":
            return self.quiet_s
        if method == "condition":
            return self.condition_
        return in_parts([ANSWER] * len(arguments[0])) if method == "generate" else None


class Stands:
    """A pool whose engines are stand-ins, and the stand-ins in the order in which they were started."""

    def __init__(self, tmp_path: Any, replicas: int, in_flight: str = "drain", **engine: Any):
        self.started: list[Stand] = []
        self.prepare: Callable[[Stand], object] = lambda stand: None  # called before an engine starts
        self.pool = Pool(pool_spec("p", "model", tmp_path, replicas=replicas, in_flight=in_flight, **engine))
        self.pool._actor = self._actor  # type: ignore[assignment, method-assign]
        self.gone: set[int] = set()  # places whose nodes have gone
        self.pool._has_lost_its_node = lambda spec: spec.place in self.gone  # type: ignore[method-assign]
        self.near = Near(self.pool)
        self.client = Client(self.near)

    def _actor(self, spec: Any) -> Any:
        self.started.append(stand := Stand(spec.name))
        self.prepare(stand)
        return stand

    @property
    def fleet(self) -> Fleet:
        return self.pool.fleet

    def states(self) -> list[State]:
        return [life.state for life in self.fleet.lives]

    async def update(self, version: int) -> None:
        await self.pool.pause(self.fleet.generation)
        await self.pool.start_weight_update()
        await self.pool.update_weights(None)
        await self.pool.finish_weight_update(version)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):  # on a busy machine
            while not condition():
                await asyncio.sleep(0.001)


def without_ray(monkeypatch: Any) -> None:
    """Kill and cancel stand-ins, and name clients, as Ray would."""
    monkeypatch.setattr(ray, "kill", lambda stand: stand.killed.set())
    monkeypatch.setattr(ray, "cancel", lambda ref: ref.task.cancel())
    monkeypatch.setattr(client_module, "_process", lambda: ("actor", "process"))


def run(story: Awaitable) -> None:
    async def told() -> None:
        await asyncio.wait_for(story, 240)

    asyncio.run(told())
