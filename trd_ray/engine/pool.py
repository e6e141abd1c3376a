"""A pool of engines: an async Ray actor that routes, gates, restarts, resizes and passes weight updates on.

    requests --gate (version >= min_version)--> least loaded engine --> generations
                                                   | dies: restart, bring to the current version, ask again

The gate stands here because the pool is where the version is: a request that demands version v is not even given to an engine
before every engine serves v. A restarted engine has the weights the pool started with; when the pool has moved on since, the
engine waits for the learner to send the weights again (`needs_weights`, answered by the loop) before it gets a request.
An engine that dies twice without an answer in between fails the pool, and with it every caller, with the tail of its log.
Shutdown stops every engine process, then the actors; a pool that is killed takes its engine actors with it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from trd_ray.engine.actor import Engine, EngineDied, EngineSpec, Generation, Request

LOG_TAIL_LINES = 30


class PoolFailed(RuntimeError):
    """The pool cannot go on; the message says why and ends with the log of the engine that died."""


@dataclass
class Member:
    spec: EngineSpec
    handle: ActorHandle
    ready: bool = False
    leaving: bool = False
    outstanding: int = 0  # requests given to it and not answered
    deaths: int = 0  # in a row


@dataclass
class PoolSpec:
    name: str
    engine: EngineSpec  # `name` and `log_path` are completed for each replica
    replicas: int
    actor_options: dict[str, Any]
    start_timeout_s: float
    request_timeout_s: float
    version: int  # of the weights that the engines start with
    in_flight: str


class Pool:
    def __init__(self, spec: PoolSpec):
        self.spec = spec
        self.version = spec.version
        self.members: list[Member] = []
        self.generation = 0  # changes whenever the set of engine processes does
        self.restarts = 0
        self.answered = {"requests": 0, "tokens": 0}
        self.waiting = 0
        self.failure: str | None = None
        self.changed = asyncio.Condition()
        self.next_index = 0
        self.background: set[asyncio.Task] = set()

    # Life of engines

    async def start(self) -> None:
        self.members = [self._new_member() for _ in range(self.spec.replicas)]
        await asyncio.gather(*(self._bring_up(m) for m in self.members))

    def _new_member(self) -> Member:
        name = f"{self.spec.name}-{self.next_index}"
        self.next_index += 1
        log = Path(self.spec.engine.log_path) / f"{name}.log"
        spec = replace(self.spec.engine, name=name, log_path=str(log))
        return Member(spec, self._actor(spec))

    def _actor(self, spec: EngineSpec) -> ActorHandle:
        return ray.remote(Engine).options(**self.spec.actor_options).remote(spec)

    async def _bring_up(self, member: Member) -> None:
        """Wait until the engine answers; it becomes ready at once if it holds the current weights."""
        try:
            await asyncio.wait_for(_result(member.handle.start.remote()), self.spec.start_timeout_s)
            await member.handle.set_version.remote(self.spec.version)
        except TimeoutError:
            raise PoolFailed(
                f"engine {member.spec.name} did not start within {self.spec.start_timeout_s:.0f} s "
                f"(needs {_needs(self.spec.actor_options)}): raise {self.spec.name}.start_timeout_s or free the "
                f"resources\n{self._log_tail(member)}"
            ) from None
        except Exception as e:
            reason = str(e).strip().splitlines()[-1:] or [type(e).__name__]
            raise PoolFailed(f"engine {member.spec.name} failed to start: {reason[0]}\n{self._log_tail(member)}") from e
        self.generation += 1
        member.ready = self.version == self.spec.version
        await self._notify()

    async def _on_death(self, member: Member, handle: ActorHandle, error: BaseException) -> None:
        """Restart the engine once; concurrent callers of a dead engine meet here, and the first one acts."""
        if member.handle is not handle or self.failure:
            return
        member.ready, member.outstanding = False, 0
        member.deaths += 1
        ray.kill(handle)
        if member.deaths >= 2:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            await self._fail(
                f"engine {member.spec.name} died twice in a row ({reason[0]}); the end of its log:\n"
                f"{self._log_tail(member)}"
            )
            return
        self.restarts += 1
        member.handle = self._actor(member.spec)
        task = asyncio.create_task(self._bring_up_again(member))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def _bring_up_again(self, member: Member) -> None:
        try:
            await self._bring_up(member)
        except PoolFailed as e:
            await self._fail(str(e))

    async def _fail(self, message: str) -> None:
        self.failure = message
        await self._notify()

    async def resize(self, replicas: int) -> None:
        """Grow or shrink to so many engines while running; leaving engines answer what they hold first."""
        if replicas < 1:
            raise ValueError(f"pool {self.spec.name} needs at least 1 engine, not {replicas}")
        staying = [m for m in self.members if not m.leaving]
        for member in staying[replicas:]:
            member.leaving = True
            async with self.changed:
                await self.changed.wait_for(lambda m=member: m.outstanding == 0)
            self.members.remove(member)
            self.generation += 1
            await _stop(member.handle)
        new = [self._new_member() for _ in range(replicas - len(staying))]
        self.members += new
        await asyncio.gather(*(self._bring_up(m) for m in new))

    async def shutdown(self) -> None:
        await self._fail("the pool was shut down")
        for task in self.background:
            task.cancel()
        await asyncio.gather(*(_stop(m.handle) for m in self.members))

    # Requests

    async def generate(self, requests: list[Request], min_version: int = 0) -> list[list[Generation]]:
        """Generations for each request, sampled by weights of at least `min_version`, however long that takes."""
        self.waiting += len(requests)
        try:
            await self._wait(lambda: self.version >= min_version and any(self._open(m) for m in self.members))
        finally:
            self.waiting -= len(requests)
        shares: dict[int, list[int]] = {}
        load = {id(m): m.outstanding for m in self.members if self._open(m)}
        for i in range(len(requests)):
            least = min(load, key=load.__getitem__)
            load[least] += 1
            shares.setdefault(least, []).append(i)
        by_id = {id(m): m for m in self.members}
        answers = await asyncio.gather(
            *(self._ask(by_id[key], [requests[i] for i in share]) for key, share in shares.items())
        )
        results: list[list[Generation]] = [[] for _ in requests]
        for share, answer in zip(shares.values(), answers, strict=True):
            for i, generations in zip(share, answer, strict=True):
                results[i] = generations
        return results

    async def _ask(self, member: Member, requests: list[Request]) -> list[list[Generation]]:
        """Ask an engine, and the least loaded one again each time the one that was asked dies."""
        while True:
            handle = member.handle
            member.outstanding += len(requests)
            try:
                answer = await asyncio.wait_for(_result(handle.generate.remote(requests)), self.spec.request_timeout_s)
            except (RayActorError, EngineDied) as e:
                await self._on_death(member, handle, e)
            except TimeoutError:
                late = TimeoutError(
                    f"no answer within {self.spec.request_timeout_s:.0f} s ({self.spec.name}.request_timeout_s)"
                )
                await self._on_death(member, handle, late)
            else:
                member.deaths = 0
                self.answered["requests"] += len(requests)
                self.answered["tokens"] += sum(len(g.ids) for generations in answer for g in generations)
                return answer
            finally:
                if member.handle is handle:
                    member.outstanding -= len(requests)
                await self._notify()
            await self._wait(lambda: any(self._open(m) for m in self.members))
            member = min((m for m in self.members if self._open(m)), key=lambda m: m.outstanding)

    @staticmethod
    def _open(member: Member) -> bool:
        return member.ready and not member.leaving

    async def _wait(self, condition) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.failure or condition())
        if self.failure:
            raise PoolFailed(self.failure)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # Weights: the pool as one receiver of vLLM's weight transfer

    async def receivers(self) -> tuple[int, int]:
        """(generation, engine worker processes): the transfer group must be made anew when the first changes."""
        return self.generation, len(self.members) * self.spec.engine.tensor_parallel

    async def init_weight_transfer_engine(self, init_info: dict) -> None:
        width = self.spec.engine.tensor_parallel
        offset = init_info.get("rank_offset")
        infos = [
            init_info if offset is None else init_info | {"rank_offset": offset + i * width}
            for i in range(len(self.members))
        ]
        await asyncio.gather(
            *(
                _result(m.handle.init_weight_transfer_engine.remote(info))
                for m, info in zip(self.members, infos, strict=True)
            )
        )

    async def start_weight_update(self) -> None:
        # An engine that waits for its weights holds no requests to drain.
        await self._all("pause", self.spec.in_flight)
        await self._all("start_weight_update")

    async def update_weights(self, update_info: Any) -> None:
        await self._all("update_weights", update_info)

    async def finish_weight_update(self, version: int) -> None:
        """Every engine serves `version` before the gate opens for it."""
        await self._all("finish_weight_update", version)
        await self._all("resume")
        self.version = version
        for member in self.members:
            member.ready = True
        await self._notify()

    async def _all(self, method: str, *args: Any) -> None:
        """Call every engine; one that is found dead is restarted, and the caller told, who may try again."""
        handles = [m.handle for m in self.members]
        outcomes = await asyncio.gather(
            *(_result(getattr(h, method).remote(*args)) for h in handles), return_exceptions=True
        )
        for member, handle, outcome in zip(self.members, handles, outcomes, strict=True):
            if isinstance(outcome, (RayActorError, EngineDied)):
                await self._on_death(member, handle, outcome)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    # What others may see

    async def status(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "engines": len(self.members),
            "running": sum(m.outstanding for m in self.members),
            "waiting": self.waiting,
            "restarts": self.restarts,
            "restarting": bool(self.background),
            "failure": self.failure,
            # An engine process that is up but holds older weights than the pool: the learner must send them again.
            "needs_weights": any(not m.ready and not m.leaving for m in self.members) and not self.background,
            **self.answered,
        }

    def _log_tail(self, member: Member) -> str:
        path = Path(member.spec.log_path)
        if not path.is_file():  # the engine ran on another node
            return f"(its log is {path} on its node)"
        return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


async def _result(ref: Awaitable) -> Any:
    """A Ray reference as a coroutine, which `wait_for` and `gather` can cancel."""
    return await ref


async def _stop(handle: ActorHandle) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(_result(handle.shutdown.remote()), timeout=30)
    ray.kill(handle)


def _needs(options: dict[str, Any]) -> str:
    return f"{options.get('num_cpus', 0):g} CPUs and {options.get('num_gpus', 0):g} GPUs"
