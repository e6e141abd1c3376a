"""A pool of engines: the Ray actor that holds the gate, routes requests, and receives weights as if it were one engine.

    requests --gate--> least loaded SERVING engine --> generations
                           | dies: the fleet restarts it, and the request is asked again

The gate is here because the version is here. A request is given to an engine only when all of this holds:
- the pool's version is at least the request's `min_version`;
- no weight update is under way;
- an engine is SERVING, which means that it holds the pool's version.

A restarted engine has the weights that the pool started with. When the version has moved on it is STALE, and the status
asks the learner to send the weights again (`needs_weights`).

When another run takes the pool over (`forget_weights`) all engines are STALE until that run's learner sends weights.

What a caller may wait for, and who ends the wait:

    the gate            an update that ends, an engine that is up; a failed or stopped pool (PoolFailed), a new run
                        (RunEnded). The next version takes as long as a training step does, so the deadline is the
                        run's: learner.step_timeout_s for the step, stream.stall_timeout_s for the rows
    an answer           the engine, within request_timeout_s; else it counts as dead and another engine is asked
    an engine to be up  the fleet, within start_timeout_s; else the pool has failed
    an update           the engines; else the learner, after sync.timeout_s, gives it up (update.py)
    a resize            the engines that leave, within request_timeout_s

At shutdown every wait ends with PoolFailed, then every engine process is stopped, then the actors (fleet.py).
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import Engine, EngineSpec, Generation, PoolSpec, Request, result
from trd_ray.engine.deaths import DEATHS, HEALTH_TIMEOUT_S
from trd_ray.engine.fleet import UP, Fleet, Life, State
from trd_ray.engine.fleet import PoolFailed as PoolFailed
from trd_ray.engine.update import EngineFailed, WeightUpdate, call_each, given_up

ENGINE_CALLS = 10_000  # that may be under way in one engine, so that a pause never queues behind requests


class RunEnded(RuntimeError):
    """The pool serves another run by now than the one whose request still waited at its gate."""


@dataclass(eq=False)
class Sent:
    """Requests that an engine has been given."""

    life: Life
    handle: ActorHandle
    requests: list[Request]
    answer: Awaitable


class Pool:
    def __init__(self, spec: PoolSpec):
        self.spec = spec
        self.fleet = Fleet(spec, lambda engine: self._actor(engine))
        self.update: WeightUpdate | None = None  # under way
        self.run = 0  # counts the runs that the pool has served before this one
        self.answered = {"requests": 0, "tokens": 0}
        self.waiting = 0

    def _actor(self, spec: EngineSpec) -> ActorHandle:
        actor: Any = ray.remote(Engine).options(max_concurrency=ENGINE_CALLS, **self.spec.actor_options)
        return actor.remote(spec)

    # Engines come and go

    async def start(self) -> None:
        await self.fleet.start()

    async def resize(self, replicas: int) -> None:
        """Grow or shrink to so many engines while running; leaving engines answer what they hold first."""
        if replicas < 1:
            raise ValueError(f"pool {self.spec.name} needs at least 1 engine, not {replicas}")
        await self.fleet.resize(replicas, may_stop=lambda: self.update is None)

    async def shutdown(self) -> None:
        await self.fleet.shutdown()

    @property
    def restarts(self) -> int:
        return self.fleet.restarts

    # Requests

    async def generate(self, requests: list[Request], min_version: int = 0) -> list[list[Generation]]:
        """Generations for each request, sampled by weights of at least `min_version`, however long that takes."""
        self.waiting += len(requests)
        run = self.run
        try:
            await self.fleet.wait(lambda: self.run != run or (self.fleet.version >= min_version and bool(self._open())))
        finally:
            self.waiting -= len(requests)
        if self.run != run:
            raise RunEnded(f"the run that asked pool {self.spec.name} has ended")
        # No await from the open gate to the last request given away: the gate may close and loads change in one.
        load = {life: life.outstanding for life in self._open()}
        shares: dict[Life, list[int]] = {}
        for i in range(len(requests)):
            least = min(load, key=load.__getitem__)
            load[least] += 1
            shares.setdefault(least, []).append(i)
        sent = [self._send(life, [requests[i] for i in share]) for life, share in shares.items()]
        answers = await asyncio.gather(*map(self._answer, sent))
        results: list[list[Generation]] = [[] for _ in requests]
        for share, answer in zip(shares.values(), answers, strict=True):
            for i, generations in zip(share, answer, strict=True):
                results[i] = generations
        return results

    def _open(self) -> list[Life]:
        """The engines that may be given requests."""
        return [] if self.update else self.fleet.those(State.SERVING)

    def _send(self, life: Life, requests: list[Request]) -> Sent:
        life.outstanding += len(requests)
        return Sent(life, life.handle, requests, result(life.handle.generate.remote(requests)))

    async def _answer(self, sent: Sent) -> list[list[Generation]]:
        """The engine's answer; each time the engine dies, the one of the engine that is then least loaded."""
        while True:
            try:
                answer = await asyncio.wait_for(sent.answer, self.spec.request_timeout_s)
            except DEATHS as e:
                await self.fleet.on_death(sent.life, sent.handle, e)
            except TimeoutError:
                late = TimeoutError(
                    f"no answer within {self.spec.request_timeout_s:.0f} s ({self.spec.name}.request_timeout_s)"
                )
                await self.fleet.on_death(sent.life, sent.handle, late)
            else:
                sent.life.answered()
                self.answered["requests"] += len(sent.requests)
                self.answered["tokens"] += sum(len(g.ids) for generations in answer for g in generations)
                return answer
            finally:
                if sent.life.handle is sent.handle:
                    sent.life.outstanding -= len(sent.requests)
                await self.fleet.notify()
            await self.fleet.wait(lambda: bool(self._open()))
            sent = self._send(min(self._open(), key=lambda life: life.outstanding), sent.requests)

    # Weights: the pool as one receiver of vLLM's weight transfer

    async def receivers(self) -> tuple[int, int]:
        """(generation, engine worker processes), once an engine is up and those that are found dead are not counted.

        The transfer group must be made anew when the generation changes. Engines that start meanwhile get their weights
        later (`needs_weights`).
        """
        with contextlib.suppress(EngineFailed):
            up = [(life, life.handle) for life in self.fleet.those(*UP)]
            await call_each(self.fleet, up, "check_health", timeout_s=HEALTH_TIMEOUT_S)
        await self.fleet.wait_at_most(
            self.spec.start_timeout_s + HEALTH_TIMEOUT_S,
            f"an engine to be up ({self.spec.name}.start_timeout_s)",
            lambda: bool(self.fleet.those(*UP)),
        )
        return self.fleet.generation, len(self.fleet.those(*UP)) * self.spec.engine.tensor_parallel

    async def init_weight_transfer_engine(self, generation: int, init_info: dict) -> None:
        """Every engine joins the transfer group, each with the ranks that follow those of the engine before it."""
        self._check(generation)
        up = self.fleet.those(*UP)
        width, offset = self.spec.engine.tensor_parallel, init_info.get("rank_offset")
        infos = [
            init_info if offset is None else init_info | {"rank_offset": offset + i * width} for i in range(len(up))
        ]
        await call_each(
            self.fleet,
            [(life, life.handle) for life in up],
            "init_weight_transfer_engine",
            arguments=[(info,) for info in infos],
        )

    async def pause(self, generation: int) -> None:
        """Begin an update: the gate closes, and what is in flight finishes or freezes."""
        self._check(generation)
        if self.update:
            self.update.close()
        self.update = WeightUpdate(self.fleet, self.spec.in_flight)
        await self.update.prepare()

    async def start_weight_update(self) -> None:
        await self._under_way("start_weight_update").begin()

    async def update_weights(self, update_info: Any) -> None:
        await self._under_way("update_weights").receive(update_info)

    async def finish_weight_update(self, version: int) -> None:
        """End an update: every engine serves `version` before the gate opens."""
        await self._under_way("finish_weight_update").end(version)
        self.update = None
        await self.fleet.notify()

    async def abort_weight_update(self) -> None:
        """Give up the update under way, if any: its engines go on with the old weights, or restart without them."""
        update, self.update = self.update, None
        if update:
            await update.give_up()
            await self.fleet.notify()

    async def forget_weights(self) -> None:
        """Make ready for another run, whose versions may begin anew: no request is served before it sends weights.

        Requests of the run before that still wait at the gate fail with RunEnded.
        """
        await self.abort_weight_update()
        self.run += 1
        self.fleet.version = -1
        for life in self.fleet.those(State.SERVING):
            life.move(State.STALE)
        await self.fleet.notify()

    def _check(self, generation: int) -> None:
        if generation != self.fleet.generation:
            raise EngineFailed(f"the engines of pool {self.spec.name} changed just before they were sent weights")

    def _under_way(self, method: str) -> WeightUpdate:
        if self.update is None:
            raise given_up(self.fleet, method)
        return self.update

    # What others may see

    async def status(self) -> dict[str, Any]:
        fleet = self.fleet
        return {
            "version": fleet.version,
            "engines": len(fleet.lives),
            "up": len(fleet.those(*UP)),
            "running": sum(life.outstanding for life in fleet.lives),
            "waiting": self.waiting,
            "restarts": fleet.restarts,
            "restarting": not fleet.failure and any(life.restart for life in fleet.those(State.STARTING)),
            "updating": self.update is not None,
            "failure": fleet.failure,
            # An engine that is up but holds other weights than the pool's version: the learner must send them again.
            "needs_weights": self.update is None and bool(fleet.those(State.STALE)),
            **self.answered,
        }
