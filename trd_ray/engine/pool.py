"""A pool of engines: an async Ray actor that routes, gates, restarts, resizes and passes weight updates on.

    requests --gate (version >= min_version)--> least loaded engine --> generations
                                                   | dies: restart, bring to the current version, ask again

The gate stands here because the pool is where the version is: a request that demands version v is not even given to an
engine before every engine serves v, and during a weight update no engine is given anything. A restarted engine has the
weights the pool started with; when the pool has moved on since, it waits for the learner to send the weights again
(`needs_weights`, answered by the loop) before it gets a request. So it is with all engines when another run takes over
the pool (`forget_weights`): they serve no one before that run's learner has sent its weights. An engine that dies twice
without an answer in between fails the pool, and with it every caller, with the tail of its log. Shutdown stops every
engine process, then the actors; a pool that is killed takes its engines with it.
"""

import asyncio
import contextlib
import mmap
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine.actor import Engine, EngineSpec, Generation, Request, reason
from trd_ray.engine.deaths import DEATHS, PASSING

LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 64 * 1024
ENGINE_CALLS = 10_000  # that may be under way in one engine, so that a pause never queues behind requests
STOP_TIMEOUT_S = 30
HEALTH_TIMEOUT_S = 120
PASSING_LIMIT = 3  # failures in a row of an engine that answers, before it is taken for dead


class PoolFailed(RuntimeError):
    """The pool cannot go on; the message says why and ends with the log of the engine that died."""


class RunEnded(RuntimeError):
    """The pool serves another run by now than the one whose request still waited at its gate."""


class EngineFailed(RuntimeError):
    """An engine could not do its part of a weight update; which and why is in the message."""


@dataclass(eq=False)
class Member:
    spec: EngineSpec
    handle: ActorHandle
    up: bool = False  # its process has started
    ready: bool = False  # and holds the pool's weights
    leaving: bool = False
    outstanding: int = 0  # requests given to it and not answered
    deaths: int = 0  # in a row
    passing: int = 0  # failures in a row after which it still answered
    check: asyncio.Task | None = None  # whether it does, under way


@dataclass(eq=False)
class Update:
    """A weight update under way: the engines that take part, as they were when it began."""

    engines: list[tuple[Member, ActorHandle]]
    touched: bool = False  # an engine that fails from here on holds neither the old weights nor the new ones


@dataclass(eq=False)
class Sent:
    """Requests that an engine has been given."""

    member: Member
    handle: ActorHandle
    requests: list[Request]
    answer: Awaitable


@dataclass
class PoolSpec:
    name: str
    engine: EngineSpec  # `name`, `log_path` and `start_id` are completed for each replica
    replicas: int
    actor_options: dict[str, Any]
    start_timeout_s: float
    request_timeout_s: float
    in_flight: str


class Pool:
    def __init__(self, spec: PoolSpec):
        self.spec = spec
        self.version = spec.engine.version
        self.members: list[Member] = []
        self.generation = 0  # changes whenever the set of engine processes does
        self.run = 0  # counts the runs that the pool has served before this one
        self.update: Update | None = None
        self.restarts = 0
        self.answered = {"requests": 0, "tokens": 0}
        self.waiting = 0
        self.failure: str | None = None
        self.changed = asyncio.Condition()
        self.resizing = asyncio.Lock()
        self.next_index = 0
        self.background: set[asyncio.Task] = set()

    # Life of engines

    async def start(self) -> None:
        self.members = [self._new_member() for _ in range(self.spec.replicas)]
        try:
            await asyncio.gather(*(self._bring_up(m) for m in self.members))
        except PoolFailed as e:
            await self._fail(str(e))
            raise

    def _new_member(self) -> Member:
        name = f"{self.spec.name}-{self.next_index}"
        self.next_index += 1
        log = Path(self.spec.engine.log_path) / f"{name}.log"
        spec = replace(self.spec.engine, name=name, log_path=str(log), start_id=uuid.uuid4().hex)
        return Member(spec, self._actor(spec))

    def _actor(self, spec: EngineSpec) -> ActorHandle:
        actor: Any = ray.remote(Engine).options(max_concurrency=ENGINE_CALLS, **self.spec.actor_options)
        return actor.remote(spec)

    async def _bring_up(self, member: Member) -> None:
        """Wait until the engine answers; it becomes ready at once if it holds the current weights."""
        try:
            await asyncio.wait_for(_result(member.handle.start.remote()), self.spec.start_timeout_s)
        except Exception as e:
            if member.leaving:
                return
            if isinstance(e, TimeoutError):
                problem = (
                    f"did not start within {self.spec.start_timeout_s:.0f} s (it needs "
                    f"{_needs(self.spec.actor_options)}): raise {self.spec.name}.start_timeout_s or free the resources"
                )
            else:
                problem = f"failed to start: {reason(e)}"
            raise PoolFailed(f"engine {member.spec.name} {problem}\n{_log_tail(member)}") from None
        self.generation += 1
        member.up, member.ready = True, self.version == self.spec.engine.version
        await self._notify()

    async def _on_death(self, member: Member, handle: ActorHandle, error: BaseException) -> None:
        """Restart the engine once; concurrent callers of a dead engine meet here, and the first one acts."""
        if isinstance(error, PASSING) and member.handle is handle and await self._passes(member):
            return
        if member.handle is not handle or self.failure or member.leaving:
            return
        member.deaths += 1
        if member.deaths >= 2:
            await self._fail(
                f"engine {member.spec.name} died twice in a row ({reason(error)}); the end of its log:\n"
                f"{_log_tail(member)}"
            )
            return
        await self._restart(member)

    async def _passes(self, member: Member) -> bool:
        """Whether the engine still answers; all the requests that fail together ask, and count, once."""
        if member.check is None:
            member.passing += 1
            member.check = asyncio.create_task(_alive(member.handle))
        check = member.check
        try:
            return await asyncio.shield(check) and member.passing <= PASSING_LIMIT
        finally:
            if member.check is check:
                member.check = None

    async def _restart(self, member: Member) -> None:
        ray.kill(member.handle)
        self.generation += 1
        self.restarts += 1
        member.up, member.ready, member.outstanding = False, False, 0
        member.spec = replace(member.spec, start_id=uuid.uuid4().hex)
        member.handle = self._actor(member.spec)
        task = asyncio.create_task(self._bring_up_again(member))
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        await self._notify()

    async def _bring_up_again(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except PoolFailed as e:
            await self._fail(str(e))

    async def _fail(self, message: str) -> None:
        self.failure = self.failure or message
        await self._notify()

    async def resize(self, replicas: int) -> None:
        """Grow or shrink to so many engines while running; leaving engines answer what they hold first."""
        if replicas < 1:
            raise ValueError(f"pool {self.spec.name} needs at least 1 engine, not {replicas}")
        async with self.resizing:
            leaving = self.members[replicas:]
            for member in leaving:
                member.leaving = True
                self.generation += 1
            await self._wait(lambda: self.update is None and not any(m.outstanding for m in leaving))
            new = [self._new_member() for _ in range(replicas - len(self.members))]
            self.members = self.members[:replicas] + new
            try:
                await asyncio.gather(*map(_stop, leaving), *map(self._bring_up, new))
            except PoolFailed:
                for member in new:
                    self.members.remove(member)
                    member.leaving = True
                    ray.kill(member.handle)
                self.generation += 1
                raise

    async def shutdown(self) -> None:
        await self._fail("the pool was shut down")
        for task in self.background:
            task.cancel()
        await asyncio.gather(*map(_stop, self.members))

    # Requests

    async def generate(self, requests: list[Request], min_version: int = 0) -> list[list[Generation]]:
        """Generations for each request, sampled by weights of at least `min_version`, however long that takes."""
        self.waiting += len(requests)
        run = self.run
        try:
            await self._wait(lambda: self.run != run or (self.version >= min_version and bool(self._open())))
        finally:
            self.waiting -= len(requests)
        if self.run != run:
            raise RunEnded(f"the run that asked pool {self.spec.name} has ended")
        # No await from the open gate to the last request given away: the gate may close and loads change in one.
        load = {m: m.outstanding for m in self._open()}
        shares: dict[Member, list[int]] = {}
        for i in range(len(requests)):
            least = min(load, key=load.__getitem__)
            load[least] += 1
            shares.setdefault(least, []).append(i)
        sent = [self._send(member, [requests[i] for i in share]) for member, share in shares.items()]
        answers = await asyncio.gather(*map(self._answer, sent))
        results: list[list[Generation]] = [[] for _ in requests]
        for share, answer in zip(shares.values(), answers, strict=True):
            for i, generations in zip(share, answer, strict=True):
                results[i] = generations
        return results

    def _send(self, member: Member, requests: list[Request]) -> Sent:
        member.outstanding += len(requests)
        return Sent(member, member.handle, requests, _result(member.handle.generate.remote(requests)))

    async def _answer(self, sent: Sent) -> list[list[Generation]]:
        """The engine's answer; each time the engine dies, the one of the engine that is then least loaded."""
        while True:
            try:
                answer = await asyncio.wait_for(sent.answer, self.spec.request_timeout_s)
            except DEATHS as e:
                await self._on_death(sent.member, sent.handle, e)
            except TimeoutError:
                late = TimeoutError(
                    f"no answer within {self.spec.request_timeout_s:.0f} s ({self.spec.name}.request_timeout_s)"
                )
                await self._on_death(sent.member, sent.handle, late)
            else:
                sent.member.deaths = sent.member.passing = 0
                self.answered["requests"] += len(sent.requests)
                self.answered["tokens"] += sum(len(g.ids) for generations in answer for g in generations)
                return answer
            finally:
                if sent.member.handle is sent.handle:
                    sent.member.outstanding -= len(sent.requests)
                await self._notify()
            await self._wait(lambda: bool(self._open()))
            sent = self._send(min(self._open(), key=lambda m: m.outstanding), sent.requests)

    def _open(self) -> list[Member]:
        """The engines that may be given requests."""
        return [] if self.update else [m for m in self.members if m.ready and not m.leaving]

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.failure or condition())
        if self.failure:
            raise PoolFailed(self.failure)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # Weights: the pool as one receiver of vLLM's weight transfer

    async def receivers(self) -> tuple[int, int]:
        """(generation, engine worker processes), once an engine is up and those that are found dead are not counted.

        The transfer group must be made anew when the generation changes. Engines that start meanwhile get their weights
        later (`needs_weights`).
        """
        with contextlib.suppress(EngineFailed):
            await self._each([(m, m.handle) for m in self._up()], "check_health", timeout_s=HEALTH_TIMEOUT_S)
        await self._wait(lambda: bool(self._up()))
        return self.generation, len(self._up()) * self.spec.engine.tensor_parallel

    async def init_weight_transfer_engine(self, generation: int, init_info: dict) -> None:
        up, width, offset = self._receiving(generation), self.spec.engine.tensor_parallel, init_info.get("rank_offset")
        infos = [
            init_info if offset is None else init_info | {"rank_offset": offset + i * width} for i in range(len(up))
        ]
        await self._each(
            [(m, m.handle) for m in up], "init_weight_transfer_engine", arguments=[(info,) for info in infos]
        )

    async def pause(self, generation: int) -> None:
        """Begin an update: the gate closes, and what is in flight finishes or freezes."""
        self.update = update = Update([(m, m.handle) for m in self._receiving(generation)])
        if self.spec.in_flight == "drain":
            # Drained here rather than in vLLM, where a request could arrive after the pause and sample new weights.
            members = [m for m, _ in update.engines]
            await self._wait(lambda: self.update is not update or not any(m.outstanding for m in members))
        await self._all(update, "pause", self.spec.in_flight)

    async def start_weight_update(self) -> None:
        if self.update is not None:
            self.update.touched = True
        await self._all(self.update, "start_weight_update")

    async def update_weights(self, update_info: Any) -> None:
        await self._all(self.update, "update_weights", update_info)

    async def finish_weight_update(self, version: int) -> None:
        """End an update: every engine serves `version` before the gate opens."""
        update = self.update
        await self._all(update, "finish_weight_update", version)
        await self._all(update, "resume")
        assert update is not None
        self.version, self.update = version, None
        updated = [m for m, handle in update.engines if m.handle is handle]
        for member in self.members:
            member.ready = member in updated
        await self._notify()

    async def abort_weight_update(self) -> None:
        """Give up the update under way, if any: its engines go on with the old weights, or restart without them."""
        update, self.update = self.update, None
        if update is None or self.failure:
            return
        alive = [m for m, handle in update.engines if m.handle is handle]
        if update.touched:
            for member in alive:
                await self._restart(member)
        else:
            with contextlib.suppress(EngineFailed):
                await self._each([(m, m.handle) for m in alive], "resume", timeout_s=HEALTH_TIMEOUT_S)
        await self._notify()

    async def forget_weights(self) -> None:
        """Make ready for another run, whose versions may begin anew: no request is served before it sends weights.

        Requests of the run before that still wait at the gate fail with RunEnded.
        """
        await self.abort_weight_update()
        self.version = -1
        self.run += 1
        for member in self.members:
            member.ready = False
        await self._notify()

    def _up(self) -> list[Member]:
        return [m for m in self.members if m.up and not m.leaving]

    def _receiving(self, generation: int) -> list[Member]:
        if generation != self.generation:
            raise EngineFailed(f"the engines of pool {self.spec.name} changed just before they were sent weights")
        return self._up()

    async def _all(self, update: Update | None, method: str, *args: Any) -> None:
        if update is None or self.update is not update:
            raise EngineFailed(f"pool {self.spec.name} was told to {method} in a weight update that was given up")
        await self._each(update.engines, method, arguments=[args] * len(update.engines))

    async def _each(
        self,
        engines: list[tuple[Member, ActorHandle]],
        method: str,
        *,
        arguments: list[tuple] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Call every engine; one that is found dead is restarted, and the caller told, who may try again.

        Without `timeout_s` the wait ends with the engines or with the trainer's patience (`abort_weight_update`).
        """
        calls = [
            asyncio.wait_for(_result(getattr(handle, method).remote(*a)), timeout_s)
            for (_, handle), a in zip(engines, arguments or [()] * len(engines), strict=True)
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for (member, handle), outcome in zip(engines, outcomes, strict=True):
            if isinstance(outcome, TimeoutError):
                outcome = TimeoutError(f"no sign of life for {timeout_s:.0f} s")
            if isinstance(outcome, (*DEATHS, TimeoutError)):
                await self._on_death(member, handle, outcome)
        for (member, _), outcome in zip(engines, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise EngineFailed(f"engine {member.spec.name}, {method}: {reason(outcome)}") from None

    # What others may see

    async def status(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "engines": len(self.members),
            "up": len(self._up()),
            "running": sum(m.outstanding for m in self.members),
            "waiting": self.waiting,
            "restarts": self.restarts,
            "restarting": bool(self.background),
            "updating": self.update is not None,
            "failure": self.failure,
            # An engine that is up but holds other weights than the pool's version: the learner must send them again.
            "needs_weights": self.update is None and any(not m.ready for m in self._up()),
            **self.answered,
        }


async def _result(ref: Awaitable) -> Any:
    """A Ray reference as a coroutine, which `wait_for` and `gather` can cancel."""
    return await ref


async def _alive(handle: ActorHandle) -> bool:
    try:
        await asyncio.wait_for(_result(handle.check_health.remote()), HEALTH_TIMEOUT_S)
    except Exception:
        return False
    return True


async def _stop(member: Member) -> None:
    if member.up:  # one that is starting would not hear it
        with contextlib.suppress(Exception):
            await asyncio.wait_for(_result(member.handle.shutdown.remote()), STOP_TIMEOUT_S)
    ray.kill(member.handle)


def _log_tail(member: Member) -> str:
    """What the engine wrote last since it was last started; earlier starts are above that in the same log."""
    path = Path(member.spec.log_path)
    if not path.is_file():  # the engine ran on another node
        return f"(its log is {path} on its node)"
    size = path.stat().st_size
    with path.open("rb") as log:
        begin = -1
        if size:
            with mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as content:
                begin = content.rfind(member.spec.start_id.encode())
        if begin < 0:
            return f"(this start of it wrote nothing to {path})"
        log.seek(max(begin, size - LOG_TAIL_BYTES))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _needs(options: dict[str, Any]) -> str:
    return f"{options.get('num_cpus', 0):g} CPUs and {options.get('num_gpus', 0):g} GPUs"
