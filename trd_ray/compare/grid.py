"""The cells that a comparison asks for, and the recipe of each.

    comparison.yaml + key.sub=value ...  ->  load()  ->  Comparison
    Comparison                           ->  cells() ->  base, tuning and final cells, in the order they are run
    Comparison, Cell, learning rate      ->  recipe() -> the Recipe of one run

A recipe is made of layers, each of which holds only what differs:

1. the recipe of the mode
2. `set`
3. `set` of the mode
4. `set` of the base, and the base's part for that mode
5. `set` of the method
6. the method's part for that mode
7. `tuning.set`, for a tuning cell

A comparison needs some things to be equal (student, problems, steps, evaluation), so no method may set them. Learning
rates are tuned on evaluation.path alone and at the end, so tuning cells leave evaluation.sets and .every_steps out.
A method with stream.max_staleness=never leaves the latter out too, as its engines never get newer weights.
They are tuned on the first base, and once for all methods of a family.
"""

import copy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from trd_ray import config
from trd_ray.compare.design import Comparison, Method, Mode, StartingPoint, Tuning
from trd_ray.config import Recipe
from trd_ray.errors import UserError

SHIPPED = "compare"  # the folder of shipped comparisons, next to the recipes


@dataclass(frozen=True)
class Cell:
    """One run. `lr` is set in tuning cells; the other cells have that of the recipe, or the tuned one."""

    kind: Literal["base", "tuning", "final"]
    mode: str
    method: str  # "" for the base
    seed: int
    lr: float | None = None
    base: str = ""  # one of the comparison's bases; "" is that of the recipes

    @property
    def name(self) -> str:
        """The name of the cell, which is also its folder within that of the comparison."""
        if self.kind == "tuning":
            return f"{self.mode}/tuning/{self.method}/lr-{self.lr:g}"
        run = f"{self.base}-seed-{self.seed}" if self.base else f"seed-{self.seed}"
        return f"{self.mode}/{self.method or 'base'}/{run}"


def cells(comparison: Comparison, mode: str, methods: list[str], base: str | None = None) -> list[Cell]:
    """Tuning and final cells of these methods on a base; the first one is where rates are tuned.

    Final ones go seed by seed, so that methods can be compared early. A grid that widens gets more tuning cells.
    """
    first = comparison.base_names[0]
    base = first if base is None else base
    t = comparison.tuning if base == first else None
    tuned = [m for m in methods if comparison.tuned_for(mode, m) == m] if t else []
    found = [Cell("tuning", mode, m, t.seed, lr, base) for m in tuned for lr in t.learning_rates] if t else []
    return found + [
        Cell("final", mode, m, seed, base=base)
        for seed in comparison.seeds_of_base(mode)
        for m in methods
        if seed in comparison.seeds_of(m)
    ]


def recipe(comparison: Comparison, cell: Cell, lr: float | None = None) -> Recipe:
    """The validated recipe of a cell; `lr` is the tuned learning rate for a final cell, if there is one."""
    mode = comparison.modes[cell.mode]
    tree = config.recipe_tree(mode.recipe)
    layers = [comparison.set, mode.set]
    if cell.base:
        base = comparison.bases[cell.base]
        layers += [base.set, base.modes.get(cell.mode, {})]
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
    offline = (tree.get("stream") or {}).get("max_staleness") == "never"  # whose engines keep the initial weights
    if cell.kind != "final" or offline:
        tree["evaluation"]["every_steps"] = None
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
    return recipe(comparison, first_base(comparison, next(iter(comparison.modes))))


def first_base(comparison: Comparison, mode: str) -> Cell:
    """A base cell of a mode, which stands for what all its cells have in common."""
    return Cell("base", mode, "", comparison.seeds_of_base(mode)[0], base=comparison.base_names[0])


def require_recipes(comparison: Comparison) -> None:
    """Raise UserError for a cell with an invalid recipe; of cells that differ only in seed or rate, one is tried."""
    t = comparison.tuning
    for mode in comparison.modes:
        methods = comparison.methods_of(mode)
        for base in comparison.base_names:
            recipe(comparison, Cell("base", mode, "", 0, base=base))
            for method in methods:
                recipe(comparison, Cell("final", mode, method, comparison.seeds_of(method)[0], base=base))
        if t:  # what tuning sets is the same for all methods
            first = comparison.base_names[0]
            recipe(comparison, Cell("tuning", mode, methods[0], t.seed, t.learning_rates[0], first))


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
        method = _without_modes(method, left_out)
        if method is not None:
            kept[name] = method
    tree = tree | {"modes": {m: mode for m, mode in modes.items() if m not in left_out}, "methods": kept}
    if isinstance(bases := tree.get("bases"), dict):
        tree["bases"] = {name: _without_modes(base, left_out) for name, base in bases.items() if base is not None}
    gone = methods.keys() - kept.keys()
    if isinstance(families := tree.get("families"), dict):
        tree["families"] = {
            name: [one for one in family if one not in gone] if isinstance(family, list) else family
            for name, family in families.items()
            if family is not None
        }
    return tree


def _without_modes(part: Any, left_out: set[str]) -> Any:
    """A method or a base without what it says of modes that are left out; None for a method of those alone."""
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("modes"), dict):
        part = part | {"modes": {m: one for m, one in part["modes"].items() if m not in left_out}}
    if isinstance(only := part.get("only_in"), list) and left_out & set(map(str, only)):
        only = [mode for mode in only if mode not in left_out]
        return part | {"only_in": only} if only else None
    return part


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
    nodes = {"modes": Mode, "methods": Method, "bases": StartingPoint, "tuning": Tuning}
    node = nodes.get(str(loc[0])) if len(loc) > 1 else Comparison
    return list((node or Comparison).model_fields)
