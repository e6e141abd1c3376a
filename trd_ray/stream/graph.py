"""One Ray Data graph for the whole run.

    order -> Sample y_o -> verify y_o -> Refine -> verify and select y_r -> feed
             async calls   tasks         async calls   tasks

A block is a few rows of one step and stays one block. So blocks move through the stages independently, and the pools
always see every request that the gate lets through. A verifier task takes `verify.cpus` of Ray's CPUs, a stage none.
"""

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from trd_ray.config import Recipe
from trd_ray.rows import IN_STREAM, to_table
from trd_ray.stream.stages import Refine, Sample, StageSpec, select_refined, verify_rollouts


def blocks(rows: Iterator[dict], recipe: Recipe) -> list[pa.Table]:
    """The run's rows as tables of `stream.rows_per_block` rows, none of which spans two steps."""
    size = recipe.stream.rows_per_block or max(1, math.ceil(recipe.rollouts_per_step / 4))
    tables: list[pa.Table] = []
    pending: list[dict] = []
    for row in rows:
        if pending and (len(pending) == size or pending[-1]["step"] != row["step"]):
            tables.append(to_table(pending, IN_STREAM))
            pending = []
        pending.append(row)
    return tables + ([to_table(pending, IN_STREAM)] if pending else [])


def graph(tables: list[pa.Table], spec: StageSpec) -> Dataset:
    recipe = spec.recipe
    _configure(DataContext.get_current())
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    client: dict[str, Any] = whole | {
        "num_cpus": 0,
        "compute": _clients(spec, tables),
        "fn_constructor_args": (spec,),
    }
    tasks: dict[str, Any] = whole | {
        "num_cpus": recipe.verify.cpus,
        "compute": TaskPoolStrategy(size=min(recipe.verify.max_tasks, max(1, len(tables)))),
    }
    # Unlike from_arrow, from_blocks starts no task, which would wait for a whole CPU, and keeps the blocks as they are.
    dataset = ray.data.from_blocks(tables)
    dataset = dataset.map_batches(Sample, **client)
    dataset = dataset.map_batches(partial(verify_rollouts, recipe=recipe), **tasks)
    if recipe.refines:
        dataset = dataset.map_batches(Refine, **client)
        dataset = dataset.map_batches(partial(select_refined, recipe=recipe), **tasks)
    return dataset


def _clients(spec: StageSpec, tables: list[pa.Table]) -> ActorPoolStrategy:
    """One actor with room for every block that the gate may let through, and for the next step's at the gate."""
    staleness = spec.max_staleness
    steps = 4 if staleness == "never" else int(staleness) + 2
    rows = max(1, tables[0].num_rows if tables else 1)
    calls = steps * math.ceil(spec.recipe.rollouts_per_step / rows)
    return ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=calls, max_concurrent_calls_per_actor=calls)


def _configure(context: DataContext) -> None:
    # The run has a display of its own.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options.verbose_progress = False
    # A block is a unit of admission, not of memory: merging or splitting would tie rows together or across steps.
    context.execution_options.preserve_order = False
    context.target_min_block_size = 1
    context.log_internal_stack_trace_to_stdout = False
    # If a verdict or a pool fails, that is final: a retry would sample the same rows again.
    context.max_errored_blocks = 0
    context.actor_task_retry_on_errors = False
