"""One Ray Data graph for the whole run.

    calls (step, first row, end) -> Flow: sample, verify, refine, verify each row by itself -> blocks of finished rows
                                    actors, verifier tasks awaited inside

A call is a few numbers, so a run of any length enters the graph at once. Its rows are looked up in the order when it
begins. So many calls are under way that the pools always see every request that the gate lets through. Neither calls
nor actors take any of Ray's CPUs; a verifier task takes `verify.cpus`.
"""

import logging
import math
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from trd_ray.config import Recipe
from trd_ray.stream.blocks import RowBlock, calls, unpack
from trd_ray.stream.flow import Flow
from trd_ray.stream.stages import StageSpec

ROWS_OF_ACTOR = 512  # of a step, at most until there are MAX_ACTORS
MAX_ACTORS = 8


def actors(recipe: Recipe) -> int:
    """How many actors share out the rows of a step: one process takes some milliseconds of its own for a row."""
    return min(MAX_ACTORS, math.ceil(recipe.rollouts_per_step / ROWS_OF_ACTOR))


def graph(spec: StageSpec, start_step: int) -> Dataset:
    """The rows of the run from `start_step` on, as packed blocks. Raises nothing before it is read."""
    _configure(DataContext.get_current())
    per_step = spec.order.rollouts_per_step
    made = calls(start_step * per_step, spec.order.length.rows, per_step, math.ceil(per_step / spec.actors))
    steps = 4 if spec.max_staleness == "never" else int(spec.max_staleness) + 2
    # Unlike from_arrow, from_blocks starts no task, which would wait for a whole CPU, and keeps the blocks as they are.
    return ray.data.from_blocks(made).map_batches(
        Flow,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=0,
        fn_constructor_args=(spec,),
        # With room for every row that the gate may let through, and for the next step's at the gate.
        compute=ActorPoolStrategy(
            size=spec.actors,
            max_tasks_in_flight_per_actor=steps,
            max_concurrent_calls_per_actor=steps,
            enable_true_multi_threading=True,
        ),
    )


def arriving(dataset: Dataset) -> Iterator[RowBlock]:
    """The blocks as they come. A block lies in the object store until nothing of its rows is held any more."""
    for bundle in dataset.iter_internal_ref_bundles():
        refs: Any = bundle.block_refs
        for ref in refs:
            yield unpack(ray.get(ref))


def _configure(context: DataContext) -> None:
    # The run has a display of its own.
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.execution_options.verbose_progress = False
    # Blocks leave as they are packed, and when they are: each is a table of one row.
    context.execution_options.preserve_order = False
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    context.log_internal_stack_trace_to_stdout = False
    # If a verdict or a pool fails, that is final: a retry would sample the same rows again.
    context.max_errored_blocks = 0
    context.actor_task_retry_on_errors = False
