"""What is known of the models that recipes name, so that a plan needs neither their files nor a network.

    a model's name  ->  facts_without_files()  ->  ModelFacts: from known_models.json, else from its config.json
    a recipe        ->  facts_of_recipe()             ->  those of its student and of every teacher

known_models.json holds what `trd_ray.models.facts` makes of each published config.json.
"""

import functools
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from trd_ray import models
from trd_ray.models import ModelFacts

if TYPE_CHECKING:
    from trd_ray.config import Recipe


@functools.cache
def known() -> dict[str, ModelFacts]:
    """Name -> facts of each model that ships with the package."""
    found: dict[str, Any] = json.loads((resources.files("trd_ray") / "known_models.json").read_text())
    for tree in found.values():
        for name in ("eos_ids", "linear_layers"):
            tree[name] = tuple(tree[name])
    return {path: ModelFacts(path=path, **tree) for path, tree in found.items()}


def facts_without_files(path: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelFacts:
    """The facts of a model, read from its files only where they do not ship. Raises UserError."""
    if path in known():
        return known()[path]
    return models.facts(models.resolve(path, revision), revision, trust_remote_code)


def facts_of_recipe(recipe: "Recipe") -> tuple[ModelFacts, dict[str, ModelFacts]]:
    """Of the student and, by their names, of the teachers. Raises UserError where nothing is known of one."""
    s = recipe.student
    student = facts_without_files(s.path, s.revision, s.trust_remote_code)
    teachers = {
        name: facts_without_files(t.path, t.revision, t.trust_remote_code) if (t := one.teacher).path else student
        for name, one in recipe.by_teacher.items()
    }
    return student, teachers
