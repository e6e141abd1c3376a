"""What `trd evaluate` is told to evaluate, as a recipe.

    a recipe  |  a model folder, hub name, miniature:student  |  a run, or a checkpoint of it
        ->  target()  ->  Target: the recipe with student.path and run_dir set, a name, the steps behind the weights

A checkpoint of a run is asked in the words that it was trained with: prompts, chat template, verifier, engines and
evaluation settings come from the run's recipe.yaml, unless they are overridden.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray import config, made_here, models
from trd_ray.config import Recipe, keys
from trd_ray.config.effects import ANSWERS, MACHINES, SCORES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.preflight.lengths import RESPONSE_TOKENS

# A checkpoint's answers, verdicts and scores are those of its run, on the machines of its run. What has a meaning in
# training only is left out, and the engines' context is found anew for what is evaluated.
FROM_A_RUN = keys.affecting(ANSWERS, VERDICTS, SCORES, MACHINES)
DIRECTORY = Path("runs") / "evaluate"


@dataclass(frozen=True)
class Target:
    recipe: Recipe
    name: str  # of the checkpoint, for people and for its folder
    step: int  # optimizer steps behind the weights, as far as that is known
    has_path: bool  # whether evaluation.path was set by someone, so that it can stand for the benchmarks


def target(argument: str, overrides: list[str]) -> Target:
    """Raises UserError for what is no recipe and cannot be a model; whether a model exists is not looked at."""
    tree = _tree(argument)
    for override in overrides:
        config.apply_override(tree, override)
    recipe = config.from_tree(tree)
    path = _model_folder(recipe.student.path)
    name = _name(path)
    student = recipe.student.model_copy(update={"path": path})
    run_dir = recipe.run_dir or str(DIRECTORY / name)
    recipe = recipe.model_copy(update={"student": student, "run_dir": run_dir, "name": name})
    return Target(recipe, name, _step(path), "path" in recipe.evaluation.model_fields_set)


def require_names(names: list[str], recipe: Recipe) -> None:
    """Raise UserError where one of the names stands for no benchmark and no file of problems; reads none of them."""
    from trd_ray.problems import benchmarks  # and with it Arrow, which most mistakes are found without

    for name in names:
        if name != recipe.evaluation.path:  # which may be a data set of the hub without an owner
            benchmarks.require_name(name)


def _tree(argument: str) -> dict[str, Any]:
    """Of a recipe, with no more keys than were set by someone."""
    place = Path(argument).expanduser()
    if place.is_dir():
        model = _model_folder(argument)
        run = _run_of(Path(model))
        return _of_run(run, model) if run else {"student": {"path": model}}
    if argument in made_here.RECIPES:  # its model knows the prompts of this recipe and no others
        return _kept(config.recipe_tree(made_here.RECIPES[argument]), argument)
    if ":" in argument and made_here.like(argument, made_here.MODELS):  # nearly the name of one, so no recipe's
        return {"student": {"path": models.resolve(argument)}}
    yaml = place.suffix in (".yaml", ".yml")
    if yaml or (not place.is_file() and _is_recipe(argument)):
        return config.recipe_tree(argument)
    from trd_ray.problems import benchmarks  # and with it Arrow, which a recipe is read without

    if place.is_file() or benchmarks.is_name(argument):
        raise UserError(
            f"{argument} is no model: name first a model folder, a hub name, a run or a recipe (.yaml), and then what "
            "to evaluate it on"
        )
    return {"student": {"path": argument}}


def _is_recipe(argument: str) -> bool:
    """A file, the name of a shipped recipe, or a word that is nearly one and no hub name with its owner."""
    try:
        config.recipe_path(argument)
    except UserError as e:
        return "/" not in argument and ("did you mean" in str(e) or "is a comparison" in str(e))
    return True


def _model_folder(path: str) -> str:
    """A run stands for its newest checkpoint, a checkpoint for the model in it; anything else is what it is."""
    folder = Path(path).expanduser()
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        if not checkpoints:
            raise UserError(f"run {folder} has no checkpoint to evaluate: name another, or let it write one")
        folder = checkpoints[-1]
    if (folder / "state.json").is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    return str(folder.resolve()) if folder.is_dir() else path


def _run_of(model: Path) -> Path | None:
    """The run directory of .../checkpoints/step-000300/model."""
    run = model.parents[2] if len(model.parents) > 2 else model
    ours = (model.parent / "state.json").is_file() and model.parents[1].name == "checkpoints"
    return run if ours and (run / "recipe.yaml").is_file() else None


def _of_run(run: Path, model: str) -> dict[str, Any]:
    place = run / "recipe.yaml"
    try:
        recipe = config.from_tree(config.read_tree(place, f"recipe {place}"))
    except UserError as e:
        raise UserError(
            f"{place} is of another version of this program ({e}): give a recipe instead, with student.path={model}"
        ) from e
    # A run's recipe.yaml holds every key: what equals the default counts as not set.
    tree = _kept(recipe.model_dump(mode="json", exclude_defaults=True), model)
    tree["evaluation"]["path"] = recipe.evaluation.path
    if recipe.evaluation.max_response_tokens == RESPONSE_TOKENS:  # what the default is, but in small contexts
        del tree["evaluation"]["max_response_tokens"]
    tree["sampler"].setdefault("dtype", recipe.learner.dtype)
    return tree


def _kept(tree: dict[str, Any], model: str) -> dict[str, Any]:
    kept = {"sampler": {}, "evaluation": {}} | keys.only(tree, FROM_A_RUN)
    kept["sampler"].setdefault("dtype", (tree.get("learner") or {}).get("dtype"))
    return kept | {"student": (tree.get("student") or {}) | {"path": model}}


def _name(path: str) -> str:
    place = Path(path)
    if run := _run_of(place):
        return word(f"{run.name}-{place.parent.name}")
    return word(place.name if place.is_dir() else path)


def word(text: str) -> str:
    """Any text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _step(path: str) -> int:
    state = Path(path).parent / "state.json"
    return int(json.loads(state.read_text())["steps"]) if state.is_file() else 0
