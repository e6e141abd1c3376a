"""Where a run's rows come from: the stream over its pools, or a corpus that `trd refine` made.

order and problems -> graph over the pools --+
corpus --------------------------------------+-> Feed, which hands out the rows of a step
"""

from collections.abc import Iterator
from dataclasses import replace

import ray

from trd_ray.config import pool_of
from trd_ray.problems.mixture import order_of
from trd_ray.session.endings import cause
from trd_ray.session.session import Session
from trd_ray.stream.blocks import RowBlock
from trd_ray.stream.feed import Feed, corpus_blocks
from trd_ray.stream.graph import actors, arriving, graph
from trd_ray.stream.shelf import start_shelf
from trd_ray.stream.stages import StageSpec


def start_feed(session: Session, *, start_step: int, version: int) -> Feed:
    """The rows of the run from `start_step` on, from the graph over the pools or from a corpus.

    The stage starts at once, and its first requests wait at the gates for engines that are still starting. `version`
    is the first that the run serves.
    """
    r = session.recipe
    inputs = session.inputs
    timeout_s = r.stream.stall_timeout_s
    if inputs.problems is None:
        blocks = corpus_blocks(
            r.data.path, rows_per_step=r.rollouts_per_step, start_step=start_step, passes=r.data.passes
        )
        return Feed(blocks, rows_per_step=r.rollouts_per_step, stall_timeout_s=timeout_s, start_step=start_step)
    problems = inputs.problems.drop_columns(["tests"])
    shelf = start_shelf(inputs.problems, inputs.spool)
    spec = StageSpec(
        r, inputs.student_path, inputs.teacher_path, session.pools["sampler"], session.refiners(),
        order=order_of(r, inputs.problems),
        problems=ray.put(problems),
        shelf=shelf,
        vocabulary=inputs.findings.shared_vocabulary,
        first_version=version,
        # If nothing trains, no rollout becomes stale.
        max_staleness=r.stream.max_staleness if inputs.job == "train" else "never",
        trains=inputs.job == "train",
        # The sampler may have its weights before a refiner that follows has its own.
        first_refine_version={name: version if pool_of(name) in r.following else 0 for name in r.by_teacher},
        judge=session.judge(),
        actors=actors(r),
    )  # fmt: skip

    def again(step: int, e: BaseException) -> Iterator[RowBlock]:
        said = f"the stream ended ({cause(e)}) and begins again with step {step + 1}"
        session.directory.event("stream", said=said, step=step + 1)
        session.display.say(said)
        pools = {"sampler": session.pools["sampler"], "refiner": session.refiners(), "judge": session.judge()}
        return arriving(graph(replace(spec, **pools), step))

    return Feed(
        arriving(graph(spec, start_step)), rows_per_step=r.rollouts_per_step, stall_timeout_s=timeout_s,
        problems=problems, start_step=start_step, again=again,
    )  # fmt: skip
