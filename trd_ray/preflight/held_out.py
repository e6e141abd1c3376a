"""The sets of held-out problems of a run: that of evaluation.path and those of evaluation.sets, by name.

recipe                                 ->  held_out_sets()  ->  the problems of each set, by name
tables by name                         ->  together()       ->  one table, for what must hold of every prompt
training texts, tables by name, recipe ->  require_unseen() ->  Overlap of evaluation.path; UserError where any set
                                                                is also trained on
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from trd_ray.config import EvaluationConfig, Recipe
from trd_ray.errors import Faults, UserError
from trd_ray.preflight.overlap import Overlap, asked_texts, overlap
from trd_ray.problems.gym import family
from trd_ray.problems.load import ProblemSet, load_problems


def key_of(name: str) -> str:
    """The keys of a set in the recipe; "" names that of evaluation.path."""
    return f"evaluation.sets.{name}" if name else "evaluation"


def held_out_sets(recipe: Recipe, names: Sequence[str], faults: Faults) -> dict[str, ProblemSet]:
    """The problems of the sets with these names, "" for evaluation.path; what is in the way goes to `faults`."""
    found: dict[str, ProblemSet] = {}
    for name in names:
        with faults:
            found[name] = _held_out(recipe, name)
    return found


def _held_out(r: Recipe, name: str) -> ProblemSet:
    try:
        e = r.evaluation.of(name)
        return load_problems(e, r.verify, r.data.columns, also_arguments=same_family(r, e, key_of(name)))
    except UserError as e:
        raise UserError(*(f"evaluation.sets.{name}: {one}" for one in e.sentences) if name else e.sentences) from e


def same_family(recipe: Recipe, e: EvaluationConfig, group: str = "evaluation") -> dict[str, Any]:
    """What cuts the index range of reasoning_gym's family, where the recipe holds out items of one it trains on.

    Raises UserError where the items held out are also trained on.
    """
    shared = shared_arguments(recipe, e.path)
    for key, one in _trained_on(recipe, e.path):
        cuts = (
            family.cut(one.path, one.split, one.arguments, key),
            family.cut(one.path, e.split, e.arguments or shared, group),
        )
        if not recipe.evaluation.allow_overlap:
            family.require_apart(*cuts, group)
    return shared


def shared_arguments(recipe: Recipe, path: str | None) -> dict[str, Any]:
    """The arguments with which the recipe trains on this family, {} where it does not. Nothing is refused."""
    trained = _trained_on(recipe, path)
    return trained[0][1].arguments if trained else {}


def _trained_on(recipe: Recipe, path: str | None) -> list[tuple[str, Any]]:
    """What is trained on of this family, each with its key."""
    data = recipe.data
    keyed = [(f"data.sources[{one.name}]", one) for one in data.sources] or [("data", data)]
    return [(key, one) for key, one in keyed if family.names_family(one.path) and one.path == path]


def together(sets: Mapping[str, pa.Table]) -> pa.Table | None:
    return pa.concat_tables(sets.values()) if sets else None


def require_unseen(recipe: Recipe, trained: Sequence[str] | None, sets: Mapping[str, pa.Table]) -> Overlap | None:
    """Refuse held-out problems that are trained on, unless evaluation.allow_overlap. None where nothing is compared."""
    if trained is None:
        return None
    faults = Faults()
    compared: dict[str, Overlap] = {}
    for name, table in sets.items():
        with faults:
            found = compared[name] = overlap(trained, asked_texts(table))
            if found.trained_on and not recipe.evaluation.allow_overlap:
                raise UserError(
                    f"data.path and {key_of(name)}.path have problems in common: {found}, such as "
                    f"{found.example[:60]!r}, and their score would say nothing about new ones: take them out of one "
                    "of the two, or set evaluation.allow_overlap=true"
                )
    faults.require_none()
    return compared.get("") or next(iter(compared.values()), None)
