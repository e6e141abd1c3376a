"""Which methods of a comparison can share engines, and who would run where on machines that are not here.

Comparison           ->  engine_groups()  ->  EngineGroup by EngineGroup: methods of a mode, on one base
Comparison, 8x80GiB  ->  elsewhere()      ->  the placement of each group, without data, model files, network or Ray
"""

import json
from dataclasses import dataclass

from trd_ray.compare.design import Comparison
from trd_ray.compare.grid import Cell, cells, recipe
from trd_ray.config import Recipe, keys
from trd_ray.config.effects import ENGINES
from trd_ray.preflight import placement
from trd_ray.preflight.memory import adapters_at_once
from trd_ray.preflight.shown import render
from trd_ray.session.dry import UNREAD, placed_elsewhere

OF_ENGINES = keys.affecting(ENGINES)


@dataclass(frozen=True)
class EngineGroup:
    """Methods of a mode and a base whose runs need the same engines, which are started once for all of them."""

    mode: str
    methods: list[str]
    base: str = ""

    def __str__(self) -> str:
        return f"{self.mode}{f' on {self.base}' * bool(self.base)}"


def engine_groups(comparison: Comparison) -> list[EngineGroup]:
    """The methods that can share engines, mode by mode and base by base; no data is read."""
    found: dict[tuple[str, str, str], EngineGroup] = {}
    for mode in comparison.modes:
        for base in comparison.base_names:
            for method in comparison.methods_of(mode):
                key = _engines(recipe(comparison, Cell("final", mode, method, 0, base=base)))
                found.setdefault((mode, base, key), EngineGroup(mode, [], base)).methods.append(method)
    return list(found.values())


def _engines(r: Recipe) -> str:
    """What engines are started with, without what may differ from request to request."""
    adapters = adapters_at_once(r) if r.sync.lora == "adapter" else 0
    rests = {pool: r.rest_of(pool) for pool in r.engines} if r.takes_turns else {}
    return json.dumps([adapters, rests, keys.only(r.model_dump(mode="json"), OF_ENGINES)])


def elsewhere(comparison: Comparison, on: str) -> int:
    """Print the placement of each group; returns 2 if the machines do not hold one of them, else 0."""
    groups = engine_groups(comparison)
    runs = sum(len(cells(comparison, group.mode, group.methods, group.base)) for group in groups)
    print(f"{comparison.name}: {runs} runs and their bases; {UNREAD}")
    fits = True
    for group in groups:
        recipes = [recipe(comparison, Cell("final", group.mode, m, 0, base=group.base)) for m in group.methods]
        largest = next(filter(placement.needs_refiner, recipes), recipes[0])
        _, placed = placed_elsewhere(largest, "train", on)
        print(f"\n{group}: {', '.join(group.methods)}\n{render(placed)}")
        fits &= placed.fits
    return 0 if fits else 2
