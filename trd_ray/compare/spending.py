"""What a run had reached when it had spent so much: equal tokens, equal seconds, and the curves against both.

    CellTable, axis, budget  ->  at_budget()  ->  measures of each problem, None where the run spends less
    runs of a method         ->  curve()      ->  their means at each evaluation on the way

Between two evaluations each problem's values are interpolated linearly over what was spent. The first one is the base,
which has spent nothing. An evaluation on the way has its learning rate not yet warmed down, so a method that reaches
the budget before its last step stands a little lower there than a run that was planned for it. One that ends
less than 2% short of the budget (two methods that train on rollouts never spend the same) stands there as it ended.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from trd_ray.compare.cell_tables import AXES, CellTable, Point

Values = dict[str, np.ndarray]  # measure -> a value for each problem
NEARLY = 0.98  # of the budget counts as all of it
GREEDY = "greedy"  # the name of a set of one answer a problem at temperature 0


def at_budget(table: CellTable, axis: str, budget: float) -> Values | None:
    points = table.points
    spent = [float(getattr(point, axis)) for point in points]
    if spent[-1] < NEARLY * budget or spent[0] > budget:
        return None
    budget = min(budget, spent[-1])
    after = next(i for i, reached in enumerate(spent) if reached >= budget)
    if spent[after] == budget:
        return points[after].graded[""].measures()
    share = (budget - spent[after - 1]) / (spent[after] - spent[after - 1])
    left, right = (points[i].graded[""].measures() for i in (after - 1, after))
    return {name: (1 - share) * left[name] + share * right[name] for name in left.keys() & right.keys()}


def budget_of(runs: Sequence[CellTable], axis: str) -> float:
    """What the cheapest of these runs spends in all of its steps, so that each of them reaches it."""
    return min(float(getattr(run.last, axis)) for run in runs)


def curve(runs: Sequence[CellTable]) -> list[dict[str, Any]]:
    """The evaluations that all runs have; each score with the standard error of the runs' means, None for one run."""
    steps = sorted(set.intersection(*({point.step for point in run.points} for run in runs)))
    found = []
    for step in steps:
        points = [next(point for point in run.points if point.step == step) for run in runs]
        spent = {axis: fmean(getattr(point, axis) for point in points) for axis in AXES}
        found.append({"step": step} | spent | {"scores": _means([headline(point) for point in points])})
    return found


def headline(point: Point) -> dict[str, float]:
    """Avg@n, Pass@n, maj@n and the greedy answer's score."""
    main = point.graded[""]
    found = main.measures()
    names = {"avg": f"avg@{main.samples}", "pass": f"pass@{main.samples}", "maj": f"maj@{main.samples}"}
    out = {short: float(found[name].mean()) for short, name in names.items() if name in found}
    if GREEDY in point.graded:
        greedy = point.graded[GREEDY]
        out["greedy"] = float(np.mean(greedy.correct)) / greedy.samples
    return out


def _means(scores: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = [name for name in scores[0] if all(name in one for one in scores)]
    n = len(scores)
    return {
        name: [fmean(values), stdev(values) / n**0.5 if n > 1 else None]
        for name in names
        for values in [[one[name] for one in scores]]
    }
