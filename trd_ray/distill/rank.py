"""One rank of the learner, inside Ray Train: it builds its part, then carries out commands until it is told to stop.

Mailbox --command--> Learner, WeightSync, Checkpointer --answer--> Mailbox
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray import collector, lineage
from trd_ray.config import Each, Recipe
from trd_ray.errors import UserError


@dataclass
class LearnerSpec:
    """What every rank needs, as plain data."""

    recipe: Recipe
    student_path: str
    teacher_path: Each[str]
    tokenizer_path: str
    total_steps: int
    resume_from: str | None
    mailbox: ActorHandle
    pools: dict[str, list[ActorHandle]]  # "student", "teacher" -> those that follow it
    sync_backend: str
    engine_dtype: str
    rows_sha256: str = lineage.START  # of the state to begin with; a checkpoint that says it itself is believed first


def work(config: dict[str, Any]) -> None:
    """One rank, inside Ray Train: build the learner, then carry out commands until told to stop."""
    spec: LearnerSpec = config["spec"]
    try:
        _work(spec)
    except UserError as e:
        ray.get(spec.mailbox.refuse.remote(str(e)))
        raise


def _rank() -> int:
    import ray.train

    return ray.train.get_context().get_world_rank()


def _work(spec: LearnerSpec) -> None:
    with collector.off():
        import ray.train.torch
        from transformers.utils import logging

        from trd_ray.distill.checkpoint import Checkpointer
        from trd_ray.distill.gpu_share import GpuShare
        from trd_ray.distill.learner import Learner

    logging.disable_progress_bar()
    rank = _rank()
    learner = Learner(
        spec.recipe,
        student_path=spec.student_path,
        teacher_path=spec.teacher_path,
        tokenizer_path=spec.tokenizer_path,
        total_steps=spec.total_steps,
        device=ray.train.torch.get_device(),
    )
    learner.rows_sha256 = spec.rows_sha256
    checkpointer = Checkpointer(learner, spec.recipe.learner.step_timeout_s)
    if spec.resume_from:
        checkpointer.load(Path(spec.resume_from))
    syncs = _syncs(spec, learner)
    share = GpuShare(learner)
    number = 0
    while True:
        command: Any = ray.get(spec.mailbox.take.remote(number, rank))
        value, part, begin = None, None, time.time()
        if command.name in ("step", "logprobs", "score"):
            share.take()
        if command.name == "step":
            assert command.per_rank is not None
            value = learner.step(*ray.get(command.per_rank[0][0]))
            part = learner.tokens
            if command.arguments:
                learner.rows_sha256 = lineage.advance(learner.rows_sha256, **command.arguments)
        elif command.name == "sync":
            assert syncs, "a sync was asked for, but no pool follows the learner"
            # Every sync pushes, also after a problem: all ranks must come to the same pushes.
            problems = [sync.push(**command.arguments) for sync in syncs]
            value = next((problem for problem in problems if problem), None)
        elif command.name == "logprobs":
            value = learner.logprobs(**command.arguments)
        elif command.name == "score":
            assert command.per_rank is not None
            part = learner.score(*ray.get(command.per_rank[0][0]))
        elif command.name == "begin_checkpoint":
            value = checkpointer.begin(Path(command.arguments["folder"]), command.arguments.get("rows_sha256"))
        elif command.name == "finish_checkpoint":
            value = checkpointer.done(**command.arguments)
        elif command.name == "give_gpu":
            share.give()
        ray.get(spec.mailbox.answer.remote(number, rank, value, begin, time.time(), part))
        if command.name == "stop":
            break
        number += 1
    for sync in syncs:
        sync.close()


def receivers(pools: dict[str, list[ActorHandle]], backend: str) -> list[tuple[str, list[ActorHandle]]]:
    """Whose weights go to which pools in one push.

    By IPC each pool gets a push of its own: torch counts one import for each export of a buffer, so two engines on one
    GPU that import the same export would leave it unfreed.
    """
    if backend == "ipc":
        return [(who, [pool]) for who, follow in pools.items() for pool in follow]
    return [(who, follow) for who, follow in pools.items() if follow]


def _syncs(spec: LearnerSpec, learner: Any) -> list[Any]:
    found = receivers(spec.pools, spec.sync_backend)
    if not found:
        return []
    import torch

    from trd_ray.engine.sync import WeightSync

    return [
        WeightSync(
            learner,
            pools,
            who=who,
            backend=spec.sync_backend,
            dtype=getattr(torch, spec.engine_dtype),
            timeout_s=spec.recipe.sync.timeout_s,
        )
        for who, pools in found
    ]
