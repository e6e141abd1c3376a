"""A run of stand-ins: real pools, clients, gate, policy and resizing; engines, verifier and learner sleep.

    for each step: rows -> sampler -> verify -> refiner -> verify, each row by itself -> train -> weights to the sampler
                   after it: loads of the pools -> ScalePolicy -> Resizing

Lengths follow from a row's seed, so every run of a workload has the same rows, whichever engine answers.
"""

import asyncio
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scale_bench.engines import Handle, Pace, SleepingPool
from trd_ray.engine.actor import EngineSpec, PoolSpec
from trd_ray.engine.client import Client
from trd_ray.engine.generations import Request
from trd_ray.engine.update import EngineFailed
from trd_ray.scale.loads import moments
from trd_ray.scale.scale_policy import ScalePolicy
from trd_ray.session.resizing import NoRoom, Resizing

NAMES = ("sampler", "refiner")


@dataclass(frozen=True)
class Workload:
    name: str
    raw: tuple[int, ...]  # median tokens, of equal parts of the run
    refined: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """What is the same in every run of a comparison. Times are simulated seconds."""

    engines: int = 8
    steps: int = 40
    rows: int = 96
    staleness: int = 0
    sigma: float = 0.5
    most_tokens: int = 16_384
    verify_s: float = 0.5
    train_s: float = 20.0
    look_s: float = 2.0
    pace: Pace = Pace(places=8, start_s=60.0, seconds_a_token=0.01, sync_s=3.0)


@dataclass
class Told:
    """How a run went."""

    seconds: float = 0.0
    ledger: list[tuple[int, ...]] = field(default_factory=list)  # row, seed, version, tokens of y_o, of y_r
    steps_s: list[float] = field(default_factory=list)
    changes: list[tuple[int, dict[str, int], str]] = field(default_factory=list)  # after which step, to what, why
    refused: list[str] = field(default_factory=list)


class FixedRoom:
    """So many engines in all."""

    def __init__(self, free: int):
        self.free = free

    def at_once(self, pool: str, count: int) -> int:
        return min(count, self.free)

    async def take(self, pool: str, count: int) -> dict[int, Any]:
        if count > self.free:
            raise NoRoom(f"{self.free} engines are free")
        self.free -= count
        return {}

    def give_back(self, pool: str, count: int, places: Mapping[int, Any]) -> None:
        self.free += count

    async def settle(self) -> None: ...


class Story:
    def __init__(
        self, scene: Scene, workload: Workload, split: Mapping[str, int], policy: ScalePolicy | None, logs: str
    ):
        self.scene, self.workload, self.policy = scene, workload, policy
        self.told = Told()
        self.handles = {name: Handle(self._pool(name, split[name], logs)) for name in NAMES}
        self.clients = {name: Client(handle) for name, handle in self.handles.items()}
        self.resizing = Resizing(self.handles, split, FixedRoom(scene.engines - sum(split.values())))
        self.version = 0
        self.change: asyncio.Task | None = None
        self.changed_s = 0.0  # when the last one was over, as the loads count time

    def _pool(self, name: str, count: int, logs: str) -> SleepingPool:
        engine = EngineSpec(
            name=name, model="", revision=None, trust_remote_code=False, dtype="float32", max_model_len=None,
            tensor_parallel=1, on_gpu=False, memory_utilization=0.5, cpu_kv_cache_gib=1,
            max_concurrent=self.scene.pace.places, seed=0, version=0, transfer_backend="gloo", log_path=logs, extra={},
        )  # fmt: skip
        spec = PoolSpec(
            name, engine, count, {}, start_timeout_s=600, request_timeout_s=36_000, in_flight="drain",
            load_every_s=self.scene.look_s,
        )  # fmt: skip
        medians = self.workload.raw if name == "sampler" else self.workload.refined

        def tokens(request: Request) -> int:
            row = request.seed >> 1
            median = medians[row * len(medians) // (self.scene.rows * self.scene.steps)]
            drawn = np.random.default_rng(request.seed).lognormal(np.log(median), self.scene.sigma)
            return int(min(max(1.0, drawn), self.scene.most_tokens))

        return SleepingPool(spec, self.scene.pace, tokens)

    async def run(self) -> Told:
        loop = asyncio.get_running_loop()
        self.epoch_s = time.time() - loop.time()
        await asyncio.gather(*(handle.start.remote() for handle in self.handles.values()))
        began = loop.time()
        under_way: dict[int, asyncio.Task] = {}
        for step in range(self.scene.steps):
            for later in range(step, min(self.scene.steps, step + self.scene.staleness + 1)):
                if later not in under_way:
                    under_way[later] = asyncio.create_task(self._rows(later))
            step_began = loop.time()
            self.told.ledger += await under_way.pop(step)
            await asyncio.sleep(self.scene.train_s)
            await self._publish(step + 1)
            self.told.steps_s.append(loop.time() - step_began)
            await self._decide(step + 1)
        self.told.seconds = loop.time() - began
        if self.change:
            self.change.cancel()
        await asyncio.gather(*(handle.shutdown.remote() for handle in self.handles.values()))
        return self.told

    async def _rows(self, step: int) -> list[tuple[int, ...]]:
        rows = self.scene.rows
        return await asyncio.gather(*(self._row(step, row) for row in range(step * rows, (step + 1) * rows)))

    async def _row(self, step: int, row: int) -> tuple[int, ...]:
        [y_o] = await self.clients["sampler"].generate(
            Request([row], seed=2 * row), max(0, step - self.scene.staleness)
        )
        await asyncio.sleep(self.scene.verify_s)
        [y_r] = await self.clients["refiner"].generate(Request([row], seed=2 * row + 1))
        await asyncio.sleep(self.scene.verify_s)
        return (row, int(y_o.ids[0]), y_o.version, int(y_o.ids[1]), int(y_r.ids[1]))

    async def _publish(self, version: int) -> None:
        """Give the sampler's engines the version, again where its engines have changed meanwhile."""
        self.version = version
        sampler = self.handles["sampler"]
        while True:
            try:
                generation, _ = await sampler.receivers.remote()
                await sampler.pause.remote(generation)
                await sampler.start_weight_update.remote()
                await sampler.update_weights.remote(None)
                return await sampler.finish_weight_update.remote(version)
            except EngineFailed:
                await sampler.abort_weight_update.remote()

    async def _decide(self, step: int) -> None:
        if self.policy is None:
            return
        if self.change is not None and self.change.done():
            self.told.refused += self.change.result()
            self.change = None
            self.policy.changed()
        series = {name: await handle.take_loads.remote() for name, handle in self.handles.items()}
        if self.change is not None:
            return
        counts = dict(self.resizing.counts)
        seen = moments(series, self.scene.look_s, self.changed_s)
        found = self.policy.after_step(seen, counts, lambda wanted: sum(wanted.values()) <= self.scene.engines)
        if found:
            self.told.changes.append((step, found.counts, found.why))
            self.change = asyncio.create_task(self._bring(found.counts))

    async def _bring(self, counts: dict[str, int]) -> list[str]:
        refused = await self.resizing.bring(counts)
        self.changed_s = self.epoch_s + asyncio.get_running_loop().time()
        return refused


def tell(scene: Scene, workload: Workload, split: Mapping[str, int], policy: ScalePolicy | None = None) -> Told:
    """Run it, on a clock of its own."""
    from scale_bench.engines import without_ray
    from scale_bench.virtual import run

    async def told() -> Told:
        return await Story(scene, workload, split, policy, logs).run()

    with without_ray(), tempfile.TemporaryDirectory() as logs:
        return run(told())
