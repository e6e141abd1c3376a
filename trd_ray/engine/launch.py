"""The way from a recipe to pools: what each engine is started with, and the Ray actor that holds a pool.

    Recipe, ActorSpec (what placement gives an engine) --create_pool--> a Pool actor with its keeper, not started yet

At shutdown `stop_pools` asks every pool to stop its engines, waits, and kills the pool's actor. What a pool has not
stopped ends with its keeper, which ends then too, and whenever this driver ends.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trd_ray.config import EngineConfig as EngineConfig
from trd_ray.config import ModelConfig, Recipe
from trd_ray.engine.actor import EngineSpec
from trd_ray.engine.keeper import EngineKeeper
from trd_ray.engine.pool import Pool, PoolSpec
from trd_ray.engine.reservation import Place
from trd_ray.preflight.actors import ActorSpec
from trd_ray.preflight.memory import adapters_at_once

VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
STOP_POOLS_S = 60.0
LOOK_EVERY_S = 1.0
LOAD_EVERY_S = 1.0
# The keepers of this driver's pools. Ray ends an actor to which no living process has a handle, and the process of a
# pool may have died.
_keepers: dict[ActorHandle, ActorHandle] = {}
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
    linear_layers: Sequence[str] = (),
) -> ActorHandle:
    """A pool that is not started yet.

    `path` is the resolved model, `version` the policy version of the weights there, `places` has one for each engine.
    `linear_layers` are the last parts of the names of those of its modules that adapters may change.
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
        memory_utilization=actor.memory_utilization or config.memory_utilization,
        cpu_kv_cache_gib=config.cpu_kv_cache_gib,
        max_concurrent=config.max_concurrent,
        seed=recipe.seed,
        version=version,
        transfer_backend=transfer_backend,
        log_path=str(logs),
        # Without it vLLM cannot give memory up; on a CPU it has none to give.
        extra=config.extra | ({"enable_sleep_mode": True} if actor.rest and actor.gpus else {}),
        max_lora_rank=max_lora_rank(recipe),
        lora_targets=lora_targets(recipe, linear_layers),
        adapters=adapters_at_once(recipe),
    )
    spec = PoolSpec(
        name=actor.name,
        engine=engine,
        replicas=config.bounds.start,
        actor_options={"num_cpus": actor.cpus, "num_gpus": actor.gpus},
        start_timeout_s=config.start_timeout_s,
        request_timeout_s=config.request_timeout_s,
        # Nothing waits for an adapter: it comes beside the requests under way.
        in_flight="keep" if transfer_backend == "adapter" else recipe.sync.in_flight,
        heartbeat_s=recipe.heartbeat_s,
        places=list(places),
        load_every_s=LOAD_EVERY_S,
        rests=actor.rest,
    )
    return pool_actor(spec)


def pool_actor(spec: PoolSpec) -> ActorHandle:
    """A pool with its keeper, where the driver lives, so that a node of engines takes neither along.

    Ray starts the process of either again, so each of its methods may be called twice.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lives_on: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    keeper: Any = ray.remote(EngineKeeper).options(num_cpus=0, **lives_on)
    made: Any = ray.remote(Pool).options(num_cpus=0, max_concurrency=POOL_CALLS, **lives_on)
    held = keeper.remote()
    pool = made.remote(spec, held)
    _keepers[pool] = held
    return pool


def keeper_of(pool: ActorHandle) -> ActorHandle | None:
    """That of a pool of this driver."""
    return next((keeper for owner, keeper in _keepers.items() if owner == pool), None)


def max_lora_rank(recipe: Recipe) -> int:
    """The smallest rank that vLLM has room for and that is at least the recipe's; 0 without LoRA."""
    rank = recipe.learner.lora.rank if recipe.learner.lora else 0
    return next((size for size in VLLM_LORA_RANKS if size >= rank), rank)


def lora_targets(recipe: Recipe, linear_layers: Sequence[str]) -> list[str]:
    """The last parts of the names of the modules that adapters change."""
    targets = recipe.learner.lora.targets if recipe.learner.lora else None
    return sorted({target.rpartition(".")[2] for target in targets or linear_layers})


def engine_dtype(config: EngineConfig, recipe: Recipe) -> str:
    return config.dtype or recipe.learner.dtype


def stop_pools(
    pools: list[ActorHandle], wait_s: float = STOP_POOLS_S, look: Callable[[], object] = lambda: None
) -> None:
    """Stop the engine processes, then the pools; returns when they are gone, or after `wait_s`.

    An engine that was not waited for ends with its pool's keeper. `look` is called about once a second meanwhile; what
    it raises ends the wait.
    """
    try:
        with contextlib.suppress(Exception):
            deadline = time.monotonic() + wait_s
            late: list[Any] = [p.shutdown.remote() for p in pools] if wait_s else []
            while late and (left := deadline - time.monotonic()) > 0:
                late = ray.wait(late, num_returns=len(late), timeout=min(left, LOOK_EVERY_S))[1]
                look()
    finally:
        for actor in [*pools, *(_keepers.pop(pool) for pool in list(_keepers) if pool in pools)]:
            with contextlib.suppress(Exception):
                ray.kill(actor)
