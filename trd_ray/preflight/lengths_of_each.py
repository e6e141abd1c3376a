"""The lengths of a run with several teachers: what fits one of them may not fit another.

    problems by teacher  ->  fit_each()  ->  the recipe with all lengths, the problems that are kept, those set aside

The student samples before a teacher sees the row, so y_o has one limit: the smallest that a teacher's context leaves.
The limits of refine prompts and of y_r are each teacher's own. With one teacher this is `lengths.fit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trd_ray.config import ONLY, Recipe, keys_of, pool_of
from trd_ray.errors import Faults, UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight import lengths
from trd_ray.preflight.lengths import Contexts, Fitted, Problem
from trd_ray.problems.set_aside import SetAside


@dataclass(frozen=True)
class FittedToEach:
    """`recipe` has all lengths. `kept` is by teacher."""

    recipe: Recipe
    kept: Mapping[str, Sequence[Problem]]
    set_aside: Sequence[SetAside]


def fit_each(
    recipe: Recipe,
    problems: Mapping[str, Sequence[Problem]],
    evaluated: Sequence[int],
    contexts: Mapping[str, Contexts],
    student: ModelFacts,
    teachers: Mapping[str, ModelFacts],
) -> FittedToEach:
    """As `lengths.fit`, for the problems of each teacher. Raises UserError, which names the teacher."""

    def fitted(name: str, one: Recipe, its: Sequence[Problem]) -> Fitted:
        try:
            group = keys_of(pool_of(name))
            return lengths.fit(one, its, evaluated, contexts[name], student, teachers[name], group)
        except UserError as e:
            raise UserError(*(f"{f'for the teacher {name}: ' * bool(name)}{said}" for said in e.sentences)) from e

    first: dict[str, Fitted] = {}
    faults = Faults()
    for name, one in recipe.by_teacher.items():
        with faults:
            first[name] = fitted(name, one, problems.get(name, ()))
    faults.require_none()
    if not recipe.teachers:
        only = first[ONLY]
        return FittedToEach(only.recipe, {ONLY: only.kept}, only.set_aside)
    y_o = min(found.recipe.sampler.response_tokens for found in first.values())
    sampler = recipe.sampler.model_copy(update={"max_response_tokens": y_o})
    found = {
        name: fitted(name, one.model_copy(update={"sampler": sampler}), first[name].kept)
        for name, one in recipe.by_teacher.items()
    }
    return FittedToEach(
        _together(recipe, {name: one.recipe for name, one in found.items()}),
        {name: one.kept for name, one in found.items()},
        [aside for name in found for aside in (*first[name].set_aside, *found[name].set_aside)],
    )


def carried(recipe: Recipe, begun: Recipe) -> Recipe:
    """`lengths.carried`, for the teachers too."""
    found = lengths.carried(recipe, begun)
    teachers = dict(found.teachers)
    for name in teachers.keys() & begun.teachers.keys():
        own, before = teachers[name].refiner, begun.teachers[name].refiner
        teachers[name] = teachers[name].with_refiner(
            max_response_tokens=own.max_response_tokens or before.max_response_tokens,
            max_prompt_tokens=own.max_prompt_tokens or before.max_prompt_tokens,
        )
    return found.model_copy(update={"teachers": teachers}) if teachers else found


def _together(recipe: Recipe, resolved: Mapping[str, Recipe]) -> Recipe:
    """The recipe with the lengths of those of each teacher; those of `refiner` are the largest."""
    some = next(iter(resolved.values()))
    refiners = {name: one.refiner for name, one in resolved.items()}
    largest = {
        "max_response_tokens": max(one.response_tokens for one in refiners.values()),
        "max_prompt_tokens": max(one.prompt_tokens for one in refiners.values()),
    }
    teachers = {
        name: one.with_refiner(
            max_response_tokens=refiners[name].response_tokens, max_prompt_tokens=refiners[name].prompt_tokens
        )
        for name, one in recipe.teachers.items()
    }
    groups: dict[str, Any] = {
        "sampler": some.sampler,
        "evaluation": some.evaluation,
        "refiner": recipe.refiner.model_copy(update=largest),
        "teachers": teachers,
    }
    return recipe.model_copy(update=groups)
