"""A comparison as it is written down, and the cells that it asks for.

    comparison.yaml + key.sub=value ...  ->  load()  ->  Comparison
    Comparison                           ->  cells() ->  base, tuning and final cells, in the order they are run
    Comparison, Cell, learning rate      ->  recipe() -> the Recipe of one run

A recipe is made of layers, each of which holds only what differs:

1. the recipe of the mode
2. `set`
3. `set` of the mode
4. `set` of the method
5. the method's part for that mode
6. `tuning.set`, for a tuning cell

A comparison needs some things to be equal (student, problems, steps, evaluation), so no method may set them. Learning
rates are tuned on evaluation.path alone, so tuning cells leave evaluation.sets out.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from trd_ray import config
from trd_ray.config import Node, Recipe, keys
from trd_ray.config.effects import COMPARISON, TUNING
from trd_ray.errors import UserError

SHIPPED = "compare"  # the folder of shipped comparisons, next to the recipes
GIVEN = {"name": "name", "run_dir": "directory", "seed": "seeds"}  # key of a recipe -> what the comparison sets it by
SHARED = keys.at_the_top(COMPARISON)
OF_TUNING = keys.at_the_top(TUNING)
FOLDERS = ("base", "tuning", "logs")  # folders of a mode, next to those of its methods
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Mode(Node):
    recipe: str = Field(description="a YAML file, or the name of a shipped recipe")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, as a tree")


class Method(Node):
    set: dict[str, Any] = Field(default_factory=dict)
    modes: dict[str, dict[str, Any]] = Field(default_factory=dict, description="mode -> what differs in it")


class Tuning(Node):
    """Each method is trained once with each learning rate; the one with the highest Avg@k goes into its final runs."""

    learning_rates: list[float] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    set: dict[str, Any] = Field(default_factory=dict, description="other problems (evaluation) and fewer steps")


class Comparison(Node):
    name: str
    directory: str | None = Field(default=None, description="default: runs/<name>")
    seeds: list[int] = Field(min_length=1)
    against: str | None = Field(default=None, description="a method: each other is compared with it, as with the base")
    modes: dict[str, Mode] = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(min_length=1)
    tuning: Tuning | None = Field(default=None, description="empty: learning rates are those of the recipes")

    @property
    def path(self) -> Path:
        return Path(self.directory or f"runs/{self.name}").expanduser().absolute()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return config.folder_name(name)

    @field_validator("directory")
    @classmethod
    def _is_a_path(cls, directory: str | None) -> str | None:
        return config.plain_path(directory)

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("holds a seed twice")
        return seeds

    @model_validator(mode="after")
    def _possible(self) -> "Comparison":
        for kind, names in (("modes", self.modes), ("methods", self.methods)):
            for name in names:
                if not NAME.fullmatch(name) or name in FOLDERS:
                    raise ValueError(
                        f"{kind}.{name} cannot be the name of a folder of runs: use letters, digits, _ and -, and "
                        f"none of {', '.join(FOLDERS)}"
                    )
        if self.against is not None and self.against not in self.methods:
            raise ValueError(f"against names no method{config.did_you_mean(self.against, list(self.methods))}")
        for name, method in self.methods.items():
            for mode in method.modes.keys() - self.modes.keys():
                hint = config.did_you_mean(mode, list(self.modes))
                raise ValueError(f"methods.{name}.modes.{mode} names no mode of the comparison{hint}")
        for where, tree, methods_own in self._layers():
            for key in tree:
                if key in GIVEN:
                    raise ValueError(f"{where} sets {key}, which every cell gets from the comparison's {GIVEN[key]}")
                if methods_own and key in SHARED:
                    raise ValueError(
                        f"{where} sets {key}, which must be equal for all methods: move it to `set`, or to a mode's"
                    )
            if methods_own and self.tuning and "lr" in (tree.get("learner") or {}):
                raise ValueError(f"{where} sets learner.lr, which is tuned: leave one of them out")
        for key in self.tuning.set if self.tuning else ():
            if key not in OF_TUNING:
                raise ValueError(f"tuning.set.{key} is not for tuning alone (known here: {', '.join(OF_TUNING)})")
        return self

    def _layers(self) -> Iterator[tuple[str, dict, bool]]:
        """Each layer that the file holds: (where, tree, whether it belongs to a method)."""
        yield "set", self.set, False
        for name, mode in self.modes.items():
            yield f"modes.{name}.set", mode.set, False
        for name, method in self.methods.items():
            yield f"methods.{name}.set", method.set, True
            for mode, tree in method.modes.items():
                yield f"methods.{name}.modes.{mode}", tree, True


@dataclass(frozen=True)
class Cell:
    """One run. `lr` is set in tuning cells; the other cells have that of the recipe, or the tuned one."""

    kind: Literal["base", "tuning", "final"]
    mode: str
    method: str  # "" for the base
    seed: int
    lr: float | None = None

    @property
    def name(self) -> str:
        """The name of the cell, which is also its folder within that of the comparison."""
        if self.kind == "base":
            return f"{self.mode}/base/seed-{self.seed}"
        if self.kind == "tuning":
            return f"{self.mode}/tuning/{self.method}/lr-{self.lr:g}"
        return f"{self.mode}/{self.method}/seed-{self.seed}"


def cells(comparison: Comparison, mode: str, methods: list[str]) -> list[Cell]:
    """Tuning and final cells of these methods; final ones go seed by seed, so that methods can be compared early."""
    t = comparison.tuning
    tuned = [Cell("tuning", mode, m, t.seed, lr) for m in methods for lr in t.learning_rates] if t else []
    return tuned + [Cell("final", mode, m, seed) for seed in comparison.seeds for m in methods]


def recipe(comparison: Comparison, cell: Cell, lr: float | None = None) -> Recipe:
    """The validated recipe of a cell; `lr` is the tuned learning rate for a final cell, if there is one."""
    mode = comparison.modes[cell.mode]
    tree = config.recipe_tree(mode.recipe)
    layers = [comparison.set, mode.set]
    if cell.method:
        method = comparison.methods[cell.method]
        layers += [method.set, method.modes.get(cell.mode, {})]
    if cell.kind == "tuning":
        assert comparison.tuning is not None
        layers.append(comparison.tuning.set)
    lr = cell.lr if cell.lr is not None else lr
    layers.append({"learner": {"lr": lr}} if lr is not None else {})
    given = {"name": cell.name.replace("/", "-"), "run_dir": str(comparison.path / cell.name), "seed": cell.seed}
    # The base is scored once for all methods.
    for layer in [*layers, given, {"evaluation": {"before": False, "after": True}}]:
        tree = merged(tree, layer)
    if cell.kind == "tuning":
        _leave_sets_out(tree)
    try:
        return config.from_tree(tree, config.recipe_path(mode.recipe).parent)
    except UserError as e:
        raise UserError(f"{cell.name}: {e}") from e


def _leave_sets_out(tree: dict[str, Any]) -> None:
    """`tree` is that of a cell, so nothing else holds its groups."""
    sets = tree["evaluation"].pop("sets", None) or {}
    checkpoint = tree.get("checkpoint") or {}
    if any(str(checkpoint.get("best")).startswith(f"evaluation/{name}/") for name in sets):
        tree["checkpoint"] = checkpoint | {"best": None}


def any_recipe(comparison: Comparison) -> Recipe:
    """The recipe of some cell, to connect to the cluster, which all cells share."""
    return recipe(comparison, Cell("base", next(iter(comparison.modes)), "", comparison.seeds[0]))


def require_recipes(comparison: Comparison) -> None:
    """Raise UserError for a cell with an invalid recipe; of cells that differ only in seed or rate, one is tried."""
    t = comparison.tuning
    for mode in comparison.modes:
        recipe(comparison, Cell("base", mode, "", comparison.seeds[0]))
        for method in comparison.methods:
            recipe(comparison, Cell("final", mode, method, comparison.seeds[0]))
        if t:  # what tuning sets is the same for all methods
            recipe(comparison, Cell("tuning", mode, next(iter(comparison.methods)), t.seed, t.learning_rates[0]))


def merged(tree: dict, layer: dict) -> dict:
    """`tree` with the keys of `layer`: groups are merged key by key, everything else, also a list, is replaced."""
    out = copy.copy(tree)
    for key, value in layer.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Comparison:
    """Read a comparison from a file, or a shipped one by its name, and apply `key.sub=value` overrides.

    A mode or a method that is set to null is left out. Raises UserError.
    """
    path = _path(name)
    tree = config.read_tree(path, str(path))
    if not tree.keys() & {"modes", "methods", "seeds"} and tree.keys() & Recipe.model_fields.keys() - {"name"}:
        raise UserError(_is_a_recipe(name))
    for override in overrides:
        config.apply_override(tree, override)
    tree = _without_null(tree)
    try:
        return Comparison.model_validate(tree)
    except ValidationError as e:
        raise UserError("; ".join(_sentence(error) for error in e.errors())) from e


def _without_null(tree: dict) -> dict:
    modes = tree.get("modes")
    methods = tree.get("methods")
    if not isinstance(modes, dict) or not isinstance(methods, dict):
        return tree
    left_out = {name for name, mode in modes.items() if mode is None}
    kept: dict[str, Any] = {}
    for name, method in methods.items():
        if isinstance(method, dict) and isinstance(method.get("modes"), dict):
            method = method | {"modes": {m: part for m, part in method["modes"].items() if m not in left_out}}
        if method is not None:
            kept[name] = method
    return tree | {"modes": {m: mode for m, mode in modes.items() if m not in left_out}, "methods": kept}


def _path(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(resources.files("trd_ray"))) / "recipes" / SHIPPED
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a comparison: name a YAML file{config.such_as_in(path)}")
    try:
        config.recipe_path(name)
    except UserError:
        raise UserError(
            f"there is no comparison {name!r}: give a YAML file or one of {', '.join(names)}"
            f"{config.close_to(path.stem, names)}"
        ) from None
    raise UserError(_is_a_recipe(name))


def _is_a_recipe(name: str) -> str:
    return (
        f"{name} is a recipe, not a comparison: run it with `trd train {name}`, or write a comparison whose modes "
        "name it"
    )


def _sentence(error: Any) -> str:
    """A fault in the comparison's own keys as a sentence; faults in recipes show when the recipe of a cell is made."""
    where = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {where}{config.did_you_mean(str(error['loc'][-1]), _known(error['loc']))}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where} {error['ctx']['error']}".strip()
        case "too_short":
            return f"{where} is empty"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, but found {error['input']!r}"


def _known(loc: tuple) -> list[str]:
    node = {"modes": Mode, "methods": Method, "tuning": Tuning}.get(str(loc[0])) if len(loc) > 1 else Comparison
    return list((node or Comparison).model_fields)
