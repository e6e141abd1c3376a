"""Recipes as files: found by name, read, overridden, checked, and written again."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trd_ray.config import unique_yaml
from trd_ray.config.close_words import close_to
from trd_ray.config.faults import sentences
from trd_ray.config.function_files import with_sources
from trd_ray.config.prompt_files import with_wordings
from trd_ray.config.tree import Recipe
from trd_ray.errors import UserError
from trd_ray.own_code import placed


def recipe_path(name: str) -> Path:
    """The file of a recipe, which `name` is, or which ships with the package under `name`. Raises UserError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = resources.files("trd_ray") / "recipes"
    names = sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml"))
    stem = path.name.removesuffix(".yaml")
    if stem in names and path.parent == Path("."):
        return Path(str(shipped / f"{stem}.yaml"))
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a recipe: name a YAML file{such_as_in(path)}")
    if name in {p.name.removesuffix(".yaml") for p in (shipped / "compare").iterdir()}:
        raise UserError(_is_a_comparison(name))
    raise UserError(
        f"there is no recipe {name!r}: give a YAML file or one of {', '.join(names)}{close_to(stem, names)}"
    )


def such_as_in(folder: Path) -> str:
    """The end of a sentence about a folder that was named in place of a YAML file: a file that may have been meant."""
    inside = sorted(folder.glob("*.y*ml"))
    return f", such as {inside[0]}" if inside else ""


def recipe_tree(name: str) -> dict:
    """The keys of a recipe file, or of a shipped recipe by its name, as they are written. Raises UserError.

    Wordings that stand in files of their own, beside the recipe, are read.
    """
    path = recipe_path(name)
    tree = read_tree(path, f"recipe {path}")
    if {"modes", "methods"} <= tree.keys():
        raise UserError(_is_a_comparison(name))
    _place_own_code(tree, path.parent)
    return with_wordings(tree, path.parent)


def _place_own_code(tree: dict, folder: Path) -> None:
    """Files of code are named from the recipe's folder, where they lie there; overrides name them from here."""
    metrics, callbacks = tree.get("metrics"), tree.get("callbacks")
    if isinstance(metrics, dict) and isinstance(metrics.get("function"), str):
        metrics["function"] = placed(metrics["function"], folder)
    if isinstance(callbacks, list):
        tree["callbacks"] = [placed(one, folder) if isinstance(one, str) else one for one in callbacks]


def _is_a_comparison(name: str) -> str:
    return f"{name} is a comparison of recipes, not a recipe: run it with `trd compare {name}`"


def load(recipe: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides, whose values are read as YAML.

    Raises UserError for anything that is not a valid recipe.
    """
    tree = recipe_tree(recipe)
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree, recipe_path(recipe).parent)


def read_tree(path: Path, name: str) -> dict:
    """A YAML file as a plain nested dict. Raises UserError, which calls the file `name`."""
    try:
        tree = unique_yaml.read(path.read_text())
    except unique_yaml.RepeatedKey as e:
        raise UserError(f"{name}: {e}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(e).split())}") from e
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a mapping of keys to values, but holds a {type(tree).__name__}")
    return tree


def from_tree(tree: dict, beside: Path | None = None) -> Recipe:
    """A Recipe from a plain nested dict. Raises UserError, which names every fault.

    `beside` is the folder of the recipe, where the files of its functions are looked for first. The files of wordings
    that it names, as those of an override, are looked for from the working directory.
    """
    tree = with_wordings(tree, Path())
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as e:
        raise UserError("; ".join(sentences(e.errors()))) from e
    return with_sources(recipe, beside)


def stored(place: Path) -> Recipe:
    """The recipe.yaml of a run. Raises UserError, which names the file."""
    remedy = "put it back as it was, or set run_dir to a new place"
    try:
        tree = read_tree(place, str(place))
    except UserError as e:
        raise UserError(f"{e}: {remedy}") from e
    if not tree:
        raise UserError(f"{place} is empty, and a run's recipe.yaml never is: {remedy}")
    try:
        return from_tree(tree)
    except UserError as e:
        raise UserError(f"{place} is no recipe of this version of the program ({e}): {remedy}") from e


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, with every key, defaults included. `load` reads an equal recipe from it."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def dump_differences(recipe: Recipe) -> str:
    """What of a recipe differs from the defaults, as YAML. `load` reads an equal recipe from it, beside the same files.

    The text of functions is left out: whoever reads this wants to see keys.
    """
    tree = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"verify": {"sources"}})
    return yaml.safe_dump(tree, sort_keys=False)


def apply_override(tree: dict, override: str) -> None:
    """Set `key.sub=value` in a plain nested dict. Raises UserError."""
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise UserError(f"override {override!r} must have the form key.sub=value")
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} holds a value, not a group of keys")
    try:
        node[leaf] = unique_yaml.read(value)
    except unique_yaml.RepeatedKey as e:
        raise UserError(f"override {override!r}: {e}") from e
    except yaml.YAMLError as e:
        raise UserError(f"override {override!r}: the value is not valid YAML") from e


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a recipe's tree as a dotted name, `learner.lora.rank`, with its value."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
