"""What a run scored on a set before it trained, to compare a checkpoint of it with.

    run, its recipe, the recipe of the evaluation, a set  ->  before_training()  ->  the score, or why there is none

Nobody asked for this comparison by name (that is --base), so it is made only where the two were asked alike: the same
problems, prompts and way to sample, and the same verdicts. Seeds and numbers of samples may differ.
"""

from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.config.effects import ANSWERS, VERDICTS
from trd_ray.config.keys import affecting, in_group
from trd_ray.engine.launch import engine_dtype
from trd_ray.problems.load import held_out_verify
from trd_ray.record.directory import RunDirectory, differences
from trd_ray.score.stats import Score

_OF_ANSWERS = {group: in_group(group, affecting(ANSWERS)) for group in ("evaluation", "sampler", "prompts")}
_OF_VERDICTS = in_group("verify", affecting(VERDICTS))


def before_training(
    run: Path, trained: Recipe, now: Recipe, of: str, problem_ids: set[str]
) -> tuple[Score | None, str]:
    """The score of the set `of`, "" for evaluation.path, or None and a note, which is "" where nothing was to expect.

    `now` is the recipe of the evaluation with the keys of this set alone; its lengths are numbers.
    """
    if of not in trained.evaluation.names or trained.evaluation.of(of).path != now.evaluation.path:
        return None, ""
    score = next((one for one in RunDirectory(run).read_evaluations(of) if one.name == "base"), None)
    if score is None:
        return None, ""
    alone = trained.evaluation.of(of)
    prompts = trained.prompts.model_copy(update={"task": trained.task})
    verify = held_out_verify(alone, trained.verify)
    began = trained.model_copy(update={"evaluation": alone, "verify": verify, "prompts": prompts})
    if changed := differences(_asked_with(began), _asked_with(now), set()):
        return None, f"not compared with the student before training, which was asked with {'; '.join(changed)}"
    if score.per_problem.keys() != problem_ids:
        return None, "not compared with the student before training, which was asked other problems"
    return score, ""


def _asked_with(r: Recipe) -> dict[str, Any]:
    """What an answer and its verdict depend on, besides weights, problems and seeds."""
    evaluation = r.evaluation.model_dump(mode="json", include=_OF_ANSWERS["evaluation"])
    sampler = r.sampler.model_dump(mode="json", include=_OF_ANSWERS["sampler"])
    return {
        "evaluation": evaluation
        | {"chat_template_kwargs": r.evaluation.chat_template_kwargs or r.student.chat_template_kwargs},
        "sampler": sampler | {"dtype": engine_dtype(r.sampler, r)},
        "prompts": r.prompts.model_dump(mode="json", include=_OF_ANSWERS["prompts"]),
        "verify": r.verify.model_dump(mode="json", include=_OF_VERDICTS),
    }
