"""Where a run's rows come from: the stream over its pools, or a corpus that `trd refine` made.

problems in the run's order -> graph over the pools --+
corpus ----------------------------------------------+-> Feed, which hands out the rows of a step
"""

from typing import Any

from trd_ray.problems.order import Order
from trd_ray.session.session import Session
from trd_ray.stream.feed import Feed, corpus_tables
from trd_ray.stream.graph import blocks, graph
from trd_ray.stream.stages import StageSpec


def start_feed(session: Session, *, start_step: int, version: int) -> Feed:
    """The rows of the run from `start_step` on, from the graph over the pools or from a corpus."""
    r = session.recipe
    inputs = session.inputs
    if inputs.problems is None:
        tables: Any = corpus_tables(r.data.path, rows_per_step=r.rollouts_per_step, start_step=start_step)
    else:
        order = Order(
            inputs.problems.num_rows, r.seed, r.rollouts_per_step, r.sampler.n, shuffle=r.data.shuffle, steps=r.steps
        )
        problems = inputs.problems.to_pylist()
        in_order = order.rows(start_step * r.rollouts_per_step, order.length.rows)
        rows = (problems[row["problem_number"]] | row for row in in_order)
        spec = StageSpec(
            r, inputs.student_path, inputs.teacher_path, session.pools["sampler"], session.refiner, version,
            # If nothing trains, no rollout becomes stale.
            max_staleness=r.stream.max_staleness if inputs.job == "train" else "never",
        )  # fmt: skip
        dataset = graph(blocks(rows, r), spec)
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return Feed(tables, rows_per_step=r.rollouts_per_step, stall_timeout_s=r.stream.stall_timeout_s)
