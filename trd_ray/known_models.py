"""What is known of the models that recipes name, so that a plan needs neither their files nor a network.

    a model's name  ->  facts_without_files()  ->  ModelFacts: from known_models.json, else from its config.json

known_models.json holds what `trd_ray.models.facts` makes of each published config.json.
"""

import functools
import json
from importlib import resources
from typing import Any

from trd_ray import models
from trd_ray.models import ModelFacts


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
