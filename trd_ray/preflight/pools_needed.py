"""Which pools of engines a job has.

recipe, job  ->  pools()  ->  the keys of each pool, in the order in which they start
"""

from typing import Literal

from trd_ray.config import JUDGE_POOL, REFINER, SAMPLER, EngineConfig, Recipe, role_of
from trd_ray.problems.load import held_out_verify

Job = Literal["train", "evaluate", "refine"]


def needs_sampler(recipe: Recipe, job: Job = "train") -> bool:
    """Whether there are engines that sample. On a corpus, which holds its rollouts, they only serve an evaluation."""
    return job != "train" or recipe.data.source == "problems" or recipe.evaluation.in_training


def needs_refiner(recipe: Recipe, job: Job = "train") -> bool:
    """Whether there is a pool of its own that refines, or one for each teacher."""
    made_here = job == "refine" or (job == "train" and recipe.data.source == "problems")
    return made_here and recipe.refines and not recipe.shares_engines


def needs_judge(recipe: Recipe, job: Job = "train") -> bool:
    """Whether a judge may be asked: about rows that are made, or in an evaluation that is not by rules of its own."""
    r = recipe
    if not r.verify.names_judge or job != "train" or r.data.source == "problems":
        return r.verify.names_judge
    sets = (r.evaluation.of(name) for name in r.evaluation.names) if r.evaluation.in_training else ()
    return any(held_out_verify(one, r.verify).names_judge for one in sets)


def pools(recipe: Recipe, job: Job = "train") -> dict[str, EngineConfig]:
    """The keys of the pools of a job, by name, in the order in which they start."""
    there = {
        SAMPLER: needs_sampler(recipe, job),
        REFINER: needs_refiner(recipe, job),
        JUDGE_POOL: needs_judge(recipe, job),
    }
    return {pool: engine for pool, engine in recipe.engines.items() if there[role_of(pool)]}
