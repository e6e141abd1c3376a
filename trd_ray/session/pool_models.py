"""Which model each pool's engines load, and which models the nodes must have before anything starts.

Inputs, the pools of the plan  ->  model_of(pool)   ->  the keys of a model, the path that is loaded
                               ->  models_wanted()  ->  what every node fetches
"""

from collections.abc import Container

from trd_ray.config import JUDGE_POOL, SAMPLER, ModelConfig, of_each, pool_of, teacher_of
from trd_ray.preflight.seats import LEARNER
from trd_ray.session.fetch import ModelsWanted
from trd_ray.session.inputs import Inputs


def model_of(pool: str, inputs: Inputs, student_path: str) -> tuple[ModelConfig, str]:
    """`student_path` holds the weights of those that follow the learner."""
    r = inputs.recipe
    if pool == SAMPLER:
        return r.student, student_path
    if pool == JUDGE_POOL:
        return r.judge, inputs.judge_path
    teacher = r.by_teacher[teacher_of(pool)].teacher
    path = student_path if pool in r.following else of_each(inputs.teacher_path)[teacher_of(pool)]
    return (teacher if teacher.path else r.student), path


def models_wanted(inputs: Inputs, student_path: str, actors: Container[str]) -> list[ModelsWanted]:
    """The student's, and those of the teachers and the judge that a pool or the learner of these actors loads."""
    r = inputs.recipe
    wanted = [ModelsWanted.of(r.student.path, student_path, r.student.revision)]
    for name, one in r.by_teacher.items():
        teacher = one.teacher
        if teacher.path and (pool_of(name) in actors or LEARNER in actors):
            path = of_each(inputs.teacher_path)[name]
            wanted.append(ModelsWanted.of(teacher.path, path, teacher.revision))
    if r.judge.path and JUDGE_POOL in actors:
        wanted.append(ModelsWanted.of(r.judge.path, inputs.judge_path, r.judge.revision))
    return wanted
