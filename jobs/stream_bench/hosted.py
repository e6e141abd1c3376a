"""Many engines in few processes: the real `Engine`s of a real `Pool`, hosted by a few actors.

    HostedPool._actor(spec) -> EngineHandle --generate.remote(...)--> EngineHost (actor): its Engine of that key

A handle is what the pool takes for an actor's: it can be pickled, called from any process, and killed. A host has no
state but its engines, which end with it, and it ends with the pool.
"""

import asyncio
import inspect
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine import actor
from trd_ray.engine.actor import Engine, EngineDied, EngineSpec
from trd_ray.engine.pool import Pool, PoolSpec

HOST_CALLS = 100_000  # requests under way in one host


class EngineHost:
    def __init__(self) -> None:
        actor.take_descendants_along = lambda: None  # a shell for each engine; these start no processes
        self.engines: dict[str, asyncio.Future[Engine]] = {}
        self.killed: set[str] = set()

    async def make(self, key: str, spec: EngineSpec) -> None:
        self._place(key).set_result(Engine(spec))

    async def call(self, key: str, method: str, arguments: tuple, named: dict[str, Any]) -> Any:
        engine = await self._place(key)  # Ray may begin a call before one that was made earlier
        if key in self.killed:
            raise EngineDied(f"the engine {key} was killed")
        outcome = getattr(engine, method)(*arguments, **named)
        return await outcome if inspect.isawaitable(outcome) else outcome

    async def kill(self, key: str) -> None:
        self.killed.add(key)

    def _place(self, key: str) -> "asyncio.Future[Engine]":
        return self.engines.setdefault(key, asyncio.get_running_loop().create_future())

    async def spent_s(self) -> float:
        """CPU seconds that the stand-in has used for making up answers."""
        import vllm

        return vllm.spent["seconds"]  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class EngineMethod:
    handle: "EngineHandle"
    name: str

    def remote(self, *arguments: Any, **named: Any) -> Any:
        call = self.handle.host.call.options(num_returns=3 if self.name == "generate" else 1)
        return call.remote(self.handle.key, self.name, arguments, named)


@dataclass(frozen=True)
class EngineHandle:
    host: ActorHandle
    key: str

    def __getattr__(self, name: str) -> EngineMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return EngineMethod(self, name)


class HostedPool(Pool):
    def __init__(self, spec: PoolSpec, _keeper: Any = None):
        super().__init__(spec)
        host: Any = ray.remote(EngineHost).options(num_cpus=0, max_concurrency=HOST_CALLS)
        self.hosts = [host.remote() for _ in range(min(spec.replicas, spec.engine.extra["additional_config"]["hosts"]))]
        self.made = 0
        self.allowed = asyncio.Event()
        self.up_at = 0.0
        ray.kill = _kills_hosted(ray.kill)

    def _actor(self, spec: EngineSpec) -> Any:
        handle = EngineHandle(self.hosts[self.made % len(self.hosts)], f"{spec.name}:{self.made}")
        self.made += 1
        handle.host.make.remote(handle.key, spec)
        return handle

    async def start(self) -> None:
        """Start the engines, but not before `let_start`, as real ones are up later than all else."""
        await self.allowed.wait()
        await super().start()
        self.up_at = time.time()

    async def let_start(self) -> None:
        self.allowed.set()

    async def when_up(self) -> float:
        """Unix time at which all its engines were."""
        return self.up_at

    async def spent_s(self) -> float:
        return sum(await asyncio.gather(*(host.spent_s.remote() for host in self.hosts)))


def _kills_hosted(kill: Any) -> Any:
    def kill_either(handle: Any, **options: Any) -> None:
        if isinstance(handle, EngineHandle):
            handle.host.kill.remote(handle.key)
        else:
            kill(handle, **options)

    return kill_either
