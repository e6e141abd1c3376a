"""Engines that answer from a script; the pool, the stage, Ray Data and the verifier tasks around them are real.

A real engine cannot be told when to answer which request, nor be made to kill the stage at a certain one.
"""

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from trd_ray import config, models
from trd_ray.engine.actor import EngineSpec, Generation, Parts, PoolSpec, Request, in_parts
from trd_ray.engine.pool import Pool
from trd_ray.problems.order import Order
from trd_ray.stream.stages import StageSpec

STUDENT = "miniature:student"

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the tests' modules


class ScriptedEngine:
    """Answers at once, but for what `Script` says."""

    def __init__(self, spec: EngineSpec, script: "Script"):
        self.spec, self.script = spec, script
        self.asked: dict[int, asyncio.Event] = {}  # by seed, of which each request has its own

    async def start(self) -> float:
        return 0.0

    async def check_health(self) -> None:
        pass

    async def pulse(self) -> float:
        return 0.0

    def shutdown(self) -> None:
        pass

    @ray.method(num_returns=3)
    async def generate(self, requests: list[Request]) -> Parts:
        return in_parts(await asyncio.gather(*map(self._generate, requests)))

    async def _generate(self, request: Request) -> list[Generation]:
        self._event(request.seed).set()
        number = sum(event.is_set() for event in self.asked.values())
        if number in self.script.kill_stage_at:
            self.script.kill_stage_at.remove(number)
            kill_stage()
        if (other := self.script.waits_for.get(request.seed)) is not None:
            await self._event(other).wait()
        if request.seed in self.script.refuses:
            return [Generation.refusal("ValueError: too long", 0, self.spec.name, 0.0)] * request.n
        if request.prompt_logprobs:  # the longer the prompt, the likelier each of its tokens
            scored = np.full(len(request.prompt_ids) - 1, -1 / len(request.prompt_ids), np.float32)
            return [self._generation(1, scored)]
        return [self._generation(4 + i) for i in range(request.n)]

    def _generation(self, tokens: int, scored: np.ndarray | None = None) -> Generation:
        ids, none = np.arange(2, 2 + tokens, dtype=np.int32), np.zeros(tokens, np.float32)
        made = Generation(ids, "\\boxed{1}", "stop", none, 0, self.spec.name, 0.0, 0.0)
        return made if scored is None else replace(made, prompt_logprobs=scored)

    def _event(self, seed: int) -> asyncio.Event:
        return self.asked.setdefault(seed, asyncio.Event())


class Script:
    """What an engine does besides answering at once."""

    def __init__(
        self,
        waits_for: dict[int, int] | None = None,
        kill_stage_at: set[int] | None = None,
        refuses: set[int] | None = None,
    ):
        self.refuses = refuses or set()  # seeds
        self.waits_for = waits_for or {}  # the request of a seed is answered after that of another has been asked for
        self.kill_stage_at = kill_stage_at or set()  # counted in requests that the engine has not met before


def kill_stage() -> None:
    """SIGKILL for the actors of the stage; like this process they are children of the raylet."""
    raylet = psutil.Process().parent()
    for process in raylet.children() if raylet else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "MapBatches(Flow)" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)


class ScriptedPool(Pool):
    """A real pool of scripted engines."""

    def __init__(self, spec: PoolSpec, script: Script):
        super().__init__(spec)
        self.script = script

    def _actor(self, spec: EngineSpec) -> Any:
        engine: Any = ray.remote(ScriptedEngine).options(num_cpus=0, max_concurrency=1000)
        return engine.remote(spec, self.script)


def scripted_pool(name: str, script: Script, logs: Path) -> Any:
    engine = EngineSpec(
        name=name, model="", revision=None, trust_remote_code=False, dtype="float32", max_model_len=None,
        tensor_parallel=1, on_gpu=False, memory_utilization=0.5, cpu_kv_cache_gib=1, max_concurrent=8, seed=0,
        version=0, transfer_backend=None, log_path=str(logs), extra={},
    )  # fmt: skip
    spec = PoolSpec(name, engine, 1, {}, start_timeout_s=60, request_timeout_s=60, in_flight="keep")
    made: Any = ray.remote(ScriptedPool).options(num_cpus=0, max_concurrency=1000)
    pool = made.remote(spec, script)
    ray.get(pool.start.remote(), timeout=60)
    return pool


def stage_spec(pool: Any, order: Order, problems: Any, **over: Any) -> StageSpec:
    tree = {
        "student": {"path": STUDENT}, "rollouts_per_step": order.rollouts_per_step, "verify": {"cpus": 0.25},
        "sampler": {"max_response_tokens": 32}, "refiner": {"max_response_tokens": 32, "max_prompt_tokens": 600},
    }  # fmt: skip
    recipe = config.from_tree(tree | over)
    path = models.resolve(STUDENT, None)
    return StageSpec(
        recipe,
        path,
        path,
        pool,
        pool,
        order,
        ray.put(problems),
        None,
        None,
        first_version=0,
        max_staleness="never",
        trains=True,
    )
