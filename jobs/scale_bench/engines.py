"""Stand-ins for engines and for Ray, below a real Pool and a real Client: an answer takes its tokens' time.

A `SleepingEngine` has so many places. A request waits for a place, and keeps it for as long as its tokens take.
Nothing that Ray does between processes is here: an actor is an object, a reference is a task.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from ray.exceptions import ActorDiedError

from trd_ray.engine.actor import PoolSpec
from trd_ray.engine.generations import Generation, Request, in_parts
from trd_ray.engine.pool import Pool
from trd_ray.scale.loads import EngineLoad

PULSE_S = 40.0  # that an answer to a pulse takes, below a PoolSpec's heartbeat_s


@dataclass(frozen=True)
class Pace:
    places: int
    start_s: float
    seconds_a_token: float
    sync_s: float


class Reference:
    def __init__(self, call: Coroutine[Any, Any, Any]):
        self.task = asyncio.ensure_future(call)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait for it

    def __await__(self) -> Generator[Any, Any, Any]:
        return asyncio.shield(self.task).__await__()


class Part:
    def __init__(self, answer: Reference, place: int):
        self.answer, self.place, self.task = answer, place, answer.task

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.answer.__await__())[self.place]


class Handle:
    """What a caller has of an actor."""

    def __init__(self, actor: Any):
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            answer = Reference(getattr(self.actor, name)(*arguments))
            return [Part(answer, place) for place in range(3)] if name == "generate" else answer

        return SimpleNamespace(remote=remote)


class SleepingEngine:
    def __init__(self, name: str, pace: Pace, tokens: Callable[[Request], int]):
        self.name, self.pace, self.tokens = name, pace, tokens
        self.places = asyncio.Semaphore(pace.places)
        self.running = self.waiting = self.version = 0
        self.killed = asyncio.Event()

    async def start(self) -> None:
        await asyncio.sleep(self.pace.start_s)

    async def pulse(self) -> float:
        """It takes its time while it lives: nobody need look at it every few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PULSE_S):
                await self.killed.wait()
                raise ActorDiedError()
        return 0.0

    async def load(self) -> EngineLoad:
        return EngineLoad(self.running, self.waiting, self.running / self.pace.places)

    async def generate(self, requests: list[Request]) -> Any:
        answers = await asyncio.gather(*(self._answer(request) for request in requests))
        if self.killed.is_set():
            raise ActorDiedError()
        return in_parts([[answer] for answer in answers])

    async def _answer(self, request: Request) -> Generation:
        length = self.tokens(request)
        self.waiting += 1
        async with self.places:
            self.waiting -= 1
            self.running += 1
            await asyncio.sleep(length * self.pace.seconds_a_token)
            self.running -= 1
        ids = np.array([request.seed, length])
        return Generation(ids, "", "stop", np.zeros(2, np.float32), self.version, self.name, 0.0, 0.0)

    async def update_weights(self, _: Any) -> None:
        await asyncio.sleep(self.pace.sync_s)

    async def finish_weight_update(self, version: int) -> None:
        self.version = version

    async def _nothing(self, *_: Any) -> None: ...

    pause = resume = start_weight_update = check_health = shutdown = _nothing


class SleepingPool(Pool):
    """A pool whose engines are stand-ins."""

    def __init__(self, spec: PoolSpec, pace: Pace, tokens: Callable[[Request], int]):
        super().__init__(spec)
        self.pace, self.tokens = pace, tokens

    def _actor(self, spec: Any) -> Any:
        return Handle(SleepingEngine(spec.name, self.pace, self.tokens))


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Within the block stand-ins are killed and cancelled, and clients named, as Ray would."""
    with (
        patch("ray.kill", lambda handle: handle.actor.killed.set()),
        patch("ray.cancel", lambda reference: reference.task.cancel()),
        patch("trd_ray.engine.client._process", lambda: ("run", "run")),
    ):
        yield
