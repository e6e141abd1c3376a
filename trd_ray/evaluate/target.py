"""What `trd evaluate` is told to evaluate, as a recipe.

    a recipe  |  a model folder, hub name, miniature:student  |  a run, or a checkpoint of it
        ->  target()  ->  Target: the recipe with student.path and run_dir set, a name, the steps behind the weights

A checkpoint of a run is asked in the words that it was trained with. Prompts, chat template, verifier, engines and
evaluation settings, with the sets of evaluation.sets, come from the recipe.yaml of the run, unless they are overridden.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_ray import config, made_here, models
from trd_ray.config import Recipe, close_to, keys
from trd_ray.config.effects import ANSWERS, MACHINES, SCORES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.preflight.lengths import RESPONSE_TOKENS

# The keys that an evaluation takes from the run of a checkpoint, since answers, verdicts, scores and machines should be
# the same. The context of the engines is not among them: it is found for what is evaluated.
FROM_A_RUN = keys.affecting(ANSWERS, VERDICTS, SCORES, MACHINES)
DIRECTORY = Path("runs") / "evaluate"
SETS = "evaluation.sets."


@dataclass(frozen=True)
class Target:
    recipe: Recipe
    name: str  # what people and the folder call the checkpoint
    step: int  # optimizer steps behind the weights, 0 if that is not known
    has_path: bool  # whether evaluation.path was set by someone, so that it can stand for the benchmarks
    run: Path | None = None  # whose checkpoint is evaluated, if a run or a checkpoint of it was named
    trained: Recipe | None = None  # the recipe of the run that was named, every key


def target(argument: str, overrides: list[str]) -> Target:
    """Read what is evaluated; raises UserError for what is no recipe and cannot be a model. No model is looked for."""
    model = _model_folder(argument)
    run = run_of(Path(model)) if Path(argument).expanduser().is_dir() else None
    trained = _recipe_of(run, model) if run else None
    tree = _of_run(trained, model) if trained else _tree(argument)
    for override in overrides:
        config.apply_override(tree, override)
    recipe = config.from_tree(tree, Path(argument).expanduser().parent)
    path = _model_folder(recipe.student.path)
    name = _name(path)
    student = recipe.student.model_copy(update={"path": path})
    run_dir = recipe.run_dir or str(DIRECTORY / name)
    recipe = recipe.model_copy(update={"student": student, "run_dir": run_dir, "name": name})
    has_path = "path" in recipe.evaluation.model_fields_set
    return Target(recipe, name, _step(path), has_path, run if path == model else None, trained)


def require_names(names: list[str], recipe: Recipe) -> None:
    """Raise UserError where one of the names stands for no set, benchmark or file of problems; reads none of them."""
    from trd_ray.problems import benchmarks  # here, since it imports Arrow, and most mistakes are found without that

    for name in names:
        if name == recipe.evaluation.path or set_named(name, recipe):  # a path may be a hub name without an owner
            continue
        close = close_to(name.removeprefix(SETS), list(recipe.evaluation.sets))
        is_set = name.startswith(SETS) or (benchmarks.is_word(name) and not benchmarks.is_name(name) and close)
        if is_set:
            raise UserError(f"there is no set {name}{close}: {_sets(recipe)}")
        benchmarks.require_name(name)


def set_named(word: str, recipe: Recipe) -> str:
    """The set of evaluation.sets that this names, as NAME or evaluation.sets.NAME; "" for none.

    The name of a benchmark means the benchmark, as published, also where a set has the same.
    """
    from trd_ray.problems import benchmarks  # as above

    name = word.removeprefix(SETS)
    return name if name in recipe.evaluation.sets and (name != word or not benchmarks.is_name(word)) else ""


def _sets(recipe: Recipe) -> str:
    named = ", ".join(recipe.evaluation.sets)
    return f"evaluation.sets holds {named}" if named else "evaluation.sets is empty"


def _tree(argument: str) -> dict[str, Any]:
    """The tree of a recipe, with only the keys that someone has set."""
    place = Path(argument).expanduser()
    if place.is_dir():
        return {"student": {"path": _model_folder(argument)}}
    if argument in made_here.RECIPES:  # the model knows only the prompts of this recipe
        return _kept(config.recipe_tree(made_here.RECIPES[argument]), argument)
    if ":" in argument and made_here.like(argument, made_here.MODELS):  # nearly the name of one, so no recipe's
        return {"student": {"path": models.resolve(argument)}}
    yaml = place.suffix in (".yaml", ".yml")
    if yaml or (not place.is_file() and _is_recipe(argument)):
        return config.recipe_tree(argument)
    from trd_ray.problems import benchmarks  # here, since it imports Arrow, which reading a recipe does not need

    if place.is_file() or benchmarks.is_name(argument):
        raise UserError(
            f"{argument} is no model: name first a model folder, a hub name, a run or a recipe (.yaml), and then what "
            "to evaluate it on"
        )
    return {"student": {"path": argument}}


def _is_recipe(argument: str) -> bool:
    """Whether it is a file, the name of a shipped recipe, or close to such a name and no hub name with an owner."""
    try:
        config.recipe_path(argument)
    except UserError as e:
        return "/" not in argument and ("did you mean" in str(e) or "is a comparison" in str(e))
    return True


def _model_folder(path: str) -> str:
    """The newest checkpoint's model of a run, the model of a checkpoint, and any other path as it is."""
    folder = Path(path).expanduser()
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        if not checkpoints:
            raise UserError(f"run {folder} has no checkpoint to evaluate: name another, or let it write one")
        folder = checkpoints[-1]
    if (folder / "state.json").is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    return str(folder.resolve()) if folder.is_dir() else path


def run_of(model: Path) -> Path | None:
    """The run directory of .../checkpoints/step-000300/model; None for any other folder."""
    run = model.parents[2] if len(model.parents) > 2 else model
    ours = (model.parent / "state.json").is_file() and model.parents[1].name == "checkpoints"
    return run if ours and (run / "recipe.yaml").is_file() else None


def _recipe_of(run: Path, model: str) -> Recipe:
    place = run / "recipe.yaml"
    try:
        return config.from_tree(config.read_tree(place, f"recipe {place}"))
    except UserError as e:
        raise UserError(
            f"{place} is of another version of this program ({e}): give a recipe instead, with student.path={model}"
        ) from e


def _of_run(recipe: Recipe, model: str) -> dict[str, Any]:
    # The recipe.yaml of a run holds every key, so a value that equals the default counts as not set.
    tree = _kept(recipe.model_dump(mode="json", exclude_defaults=True), model)
    tree["evaluation"]["path"] = recipe.evaluation.path
    if recipe.evaluation.max_response_tokens == RESPONSE_TOKENS:  # the default, except in small contexts
        del tree["evaluation"]["max_response_tokens"]
    tree["sampler"].setdefault("dtype", recipe.learner.dtype)
    return tree


def _kept(tree: dict[str, Any], model: str) -> dict[str, Any]:
    kept = {"sampler": {}, "evaluation": {}} | keys.only(tree, FROM_A_RUN)
    kept["sampler"].setdefault("dtype", (tree.get("learner") or {}).get("dtype"))
    return kept | {"student": (tree.get("student") or {}) | {"path": model}}


def _name(path: str) -> str:
    place = Path(path)
    if run := run_of(place):
        return word(f"{run.name}-{place.parent.name}")
    return word(place.name if place.is_dir() else path)


def word(text: str) -> str:
    """Any text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _step(path: str) -> int:
    state = Path(path).parent / "state.json"
    return int(json.loads(state.read_text())["steps"]) if state.is_file() else 0
