"""The way from a recipe to pools: what each engine is started with, and the Ray actor that holds a pool.

    Recipe, ActorSpec (what placement gives an engine) --create_pool--> a Pool actor, not started yet

At shutdown `stop_pools` asks every pool to stop its engines, waits, and kills the pool's actor.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.config import EngineConfig as EngineConfig
from trd_ray.config import ModelConfig, Recipe
from trd_ray.engine.actor import EngineSpec
from trd_ray.engine.pool import Pool, PoolSpec
from trd_ray.engine.reservation import Place
from trd_ray.preflight.actors import ActorSpec
from trd_ray.preflight.memory import adapters_at_once

VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
STOP_POOLS_S = 60.0
POOL_CALLS = 10_000  # that may wait in a pool at a time; a client has one for each version at the gate


def create_pool(
    config: EngineConfig,
    model: ModelConfig,
    path: str,
    recipe: Recipe,
    *,
    actor: ActorSpec,
    version: int,
    transfer_backend: str | None,
    logs: Path,
    places: Sequence[Place] = (),
) -> ActorHandle:
    """A pool that is not started yet.

    `path` is the resolved model, `version` the policy version of the weights there, `places` has one for each engine.
    """
    engine = EngineSpec(
        name=actor.name,
        model=path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=engine_dtype(config, recipe),
        max_model_len=config.max_model_len,
        tensor_parallel=config.tensor_parallel,
        on_gpu=actor.gpus > 0,
        memory_utilization=config.memory_utilization,
        cpu_kv_cache_gib=config.cpu_kv_cache_gib,
        max_concurrent=config.max_concurrent,
        seed=recipe.seed,
        version=version,
        transfer_backend=transfer_backend,
        log_path=str(logs),
        extra=config.extra,
        max_lora_rank=max_lora_rank(recipe),
        adapters=adapters_at_once(recipe),
    )
    spec = PoolSpec(
        name=actor.name,
        engine=engine,
        replicas=config.replicas,
        actor_options={"num_cpus": actor.cpus, "num_gpus": actor.gpus},
        start_timeout_s=config.start_timeout_s,
        request_timeout_s=config.request_timeout_s,
        # Nothing waits for an adapter: it comes beside the requests under way.
        in_flight="keep" if transfer_backend == "adapter" else recipe.sync.in_flight,
        places=list(places),
    )
    pool: Any = ray.remote(Pool).options(num_cpus=0, max_concurrency=POOL_CALLS)
    return pool.remote(spec)


def max_lora_rank(recipe: Recipe) -> int:
    """The smallest rank that vLLM has room for and that is at least the recipe's; 0 without LoRA."""
    rank = recipe.learner.lora.rank if recipe.learner.lora else 0
    return next((size for size in VLLM_LORA_RANKS if size >= rank), rank)


def engine_dtype(config: EngineConfig, recipe: Recipe) -> str:
    return config.dtype or recipe.learner.dtype


def stop_pools(pools: list[ActorHandle], wait_s: float = STOP_POOLS_S) -> None:
    """Stop the engine processes, then the pools; returns when they are gone, or after `wait_s`.

    An engine that was not waited for ends with its pool.
    """
    if pools and wait_s:
        with contextlib.suppress(Exception):
            ray.wait([p.shutdown.remote() for p in pools], num_returns=len(pools), timeout=wait_s)
    for pool in pools:
        with contextlib.suppress(Exception):
            ray.kill(pool)
