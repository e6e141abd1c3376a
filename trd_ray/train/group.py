"""The worker group of the learner, made from the recipe of a run and the cluster at hand."""

import contextlib
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from trd_ray.config import of_each
from trd_ray.distill.batches import Cost
from trd_ray.distill.shared_out import cost_of_each
from trd_ray.distill.trainer import Trainer
from trd_ray.engine.launch import engine_dtype
from trd_ray.preflight.seats import LEARNER
from trd_ray.session.cluster import is_local
from trd_ray.session.fresh_seats import has_dead_node
from trd_ray.session.session import Session
from trd_ray.train.living import Circumstances, LivingLearner, sha256_of

RELEASE_S = 30.0  # for the pools to give a weight update up


def living_learner(session: Session, done: int, checkpoint: Path | None) -> LivingLearner:
    """The learner, not started yet, with the weights after `done` steps."""

    def release() -> None:
        """The engines give up a weight update that was under way."""
        asked: list[Any] = [session.pools[name].abort_weight_update.remote() for name in session.following()]
        with contextlib.suppress(Exception):  # a pool that cannot says so where it is looked at
            ray.get(asked, timeout=RELEASE_S)

    around = Circumstances(
        max_restarts=session.recipe.learner.max_restarts,
        look=session.look,
        seats=lambda most: (session.seat_learner(most), session.reservation.ranks()),
        spec=lambda: {"pools": following(session)},
        release=release,
        say=session.display.say,
        phase=session.display.phase,
        shown=lambda: session.display.shown()["phase"],
        has_lost_a_node=lambda: not is_local(session.recipe) and has_dead_node(session.plan),
    )
    return LivingLearner(learner_group(session, done, checkpoint), session.directory, done, around)


def following(session: Session) -> dict[str, list[ActorHandle]]:
    """ "student", "teacher" -> the pools that get its weights."""
    pools: dict[str, list[ActorHandle]] = {}
    for name, whose in session.following().items():
        pools.setdefault(whose, []).append(session.pools[name])
    return pools


def learner_group(session: Session, done: int, checkpoint: Path | None) -> Trainer:
    """The group, not started yet; without a checkpoint it begins with the initial weights."""
    r = session.recipe
    inputs = session.inputs
    learner = session.plan.specs[LEARNER]
    return Trainer(
        {
            "recipe": r,
            "student_path": inputs.student_path,
            "teacher_path": inputs.teacher_path,
            "tokenizer_path": inputs.student_path,
            "total_steps": inputs.total_steps,
            "resume_from": str(checkpoint) if checkpoint else None,
            "rows_sha256": sha256_of(session.directory, done, checkpoint),
            "pools": following(session),
            "sync_backend": session.plan.sync_backend,
            "engine_dtype": engine_dtype(r.sampler, r),
        },
        cpus=learner.cpus,
        gpus=learner.gpus,
        nodes=session.reservation.ranks(),
        ranks=len(session.plan.seats_of(LEARNER)) or None,
        storage=session.directory.path / "logs" / "ray_train",
        cost=cost_of_each(
            {
                name: Cost.of(
                    inputs.student,
                    facts if r.loss.has_teacher else None,
                    r.learner.activation_checkpointing,
                    adapters=bool(r.learner.lora),
                )
                for name, facts in of_each(inputs.teacher).items()
            }
        ),
    )  # fmt: skip
