"""The worker group of the learner, made from the recipe of a run and the cluster at hand."""

from pathlib import Path

from ray.actor import ActorHandle

from trd_ray.distill.batches import Cost
from trd_ray.distill.trainer import Trainer
from trd_ray.engine.launch import engine_dtype
from trd_ray.preflight.seats import LEARNER
from trd_ray.session.session import Session


def learner_group(session: Session, checkpoint: Path | None) -> Trainer:
    """The group, not started yet; without a checkpoint it begins with the initial weights."""
    r = session.recipe
    inputs = session.inputs
    learner = session.plan.specs[LEARNER]
    pools: dict[str, list[ActorHandle]] = {}
    for name, whose in session.following().items():
        pools.setdefault(whose, []).append(session.pools[name])
    return Trainer(
        {
            "recipe": r,
            "student_path": inputs.student_path,
            "teacher_path": inputs.teacher_path,
            "tokenizer_path": inputs.student_path,
            "total_steps": inputs.total_steps,
            "resume_from": str(checkpoint) if checkpoint else None,
            "pools": pools,
            "sync_backend": session.plan.sync_backend,
            "engine_dtype": engine_dtype(r.sampler, r),
        },
        cpus=learner.cpus,
        gpus=learner.gpus,
        nodes=session.reservation.ranks(),
        storage=session.directory.path / "logs" / "ray_train",
        cost=Cost.of(
            inputs.student, inputs.teacher, r.learner.activation_checkpointing, adapters=bool(r.learner.lora)
        ),
    )  # fmt: skip
