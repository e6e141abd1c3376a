"""The sets of held-out problems of a run: that of evaluation.path and those of evaluation.sets, by name.

tables by name                         ->  together()       ->  one table, for what must hold of every prompt
training texts, tables by name, recipe ->  require_unseen() ->  Overlap of evaluation.path; UserError where any set
                                                                is also trained on
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.errors import Faults, UserError
from trd_ray.preflight.overlap import Overlap, overlap


def key_of(name: str) -> str:
    """The keys of a set in the recipe; "" names that of evaluation.path."""
    return f"evaluation.sets.{name}" if name else "evaluation"


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
            found = compared[name] = overlap(trained, table["problem"].to_pylist())
            if found.trained_on and not recipe.evaluation.allow_overlap:
                raise UserError(
                    f"data.path and {key_of(name)}.path have problems in common: {found}, such as "
                    f"{found.example[:60]!r}, and their score would say nothing about new ones: take them out of one "
                    "of the two, or set evaluation.allow_overlap=true"
                )
    faults.require_none()
    return compared.get("") or next(iter(compared.values()), None)
