"""Tables of finished cells become numbers: scores, differences, equal costs, coverage, curves, what was trained on.

    comparison, CellTables  ->  from_cells()  ->  a plain dict, which is comparison.json and what the tables show

- Intervals hold seeds and problems (trd_ray.score.two_level); differences are paired by base, seed and problem, and
  corrected for how many a table shows.
- Each of evaluation.sets has the same numbers, below `sets` of a method. A guard is lost where the mean over seeds is
  below that of the base, clear of chance.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from trd_ray.compare.cell_tables import CellTable, Graded, Point
from trd_ray.compare.compared import BASE, Lines, Runs, collapses, compared, gained
from trd_ray.compare.design import Comparison
from trd_ray.compare.grid import cells, first_base, recipe
from trd_ray.compare.spending import GREEDY, Values, at_budget, budget_of, curve
from trd_ray.compare.tuning import at_the_edge, chosen, rates
from trd_ray.errors import UserError
from trd_ray.score.stats import LEVEL, estimate

EQUAL = ("tokens", "seconds")  # what methods are given alike, beside steps
ON_THE_WAY = 3  # evaluations of a run, the base's among them, between which scores can be interpolated
Points = dict[tuple[str, str], dict[tuple[str, int], Point]]  # (mode, method) -> (base, seed) -> the last evaluation


def missing(comparison: Comparison, tables: Sequence[CellTable]) -> list[str]:
    """The final cells of a comparison that have no table. That of the base stands in the tables of its runs too."""
    there = {table.cell.name for table in tables}
    asked = [
        cell.name
        for mode in comparison.modes
        for base in comparison.base_names
        for cell in cells(comparison, mode, comparison.methods_of(mode), base)
        if cell.kind == "final"
    ]
    return [name for name in asked if name not in there]


def from_cells(
    comparison: Comparison, tables: Sequence[CellTable], failures: dict[str, str], unfinished: list[str]
) -> dict[str, Any]:
    finals, points = of_comparison(comparison, tables)
    e = recipe(comparison, first_base(comparison, next(iter(comparison.modes)))).evaluation
    against, resamples = comparison.against, e.bootstrap
    with_cells = {table.base for table in tables}
    out: dict[str, Any] = {
        "name": comparison.name,
        "level": LEVEL,
        "seeds": comparison.seeds,
        "bases": [base for base in comparison.base_names if base in with_cells],
        "against": against,
        "modes": {},
        "tuning": _tuning(comparison, tables),
        "failures": failures,
        "unfinished": unfinished,
    }
    values = {line: values_of(runs) for line, runs in points.items()}
    lines = compared(values, against, resamples)
    for (mode, method), line in lines.items():
        told = _told(points[mode, method], "") | line
        if method != BASE:
            runs = list(finals[mode, method].values())
            avg = f"avg@{told['samples']}"
            told = {"learning_rate": runs[0].lr} | told
            told["collapses"] = collapses(values[mode, method], values.get((mode, BASE), {}), avg)
            told |= {"cost": _mean_of([run.cost for run in runs]), "trained_on": _trained_on(runs)}
        told["answers"] = _answers(points[mode, method])
        out["modes"].setdefault(mode, {})[method] = told
    scored = {of for runs in points.values() for point in runs.values() for of in point.graded if of}
    for of in [*(of for of in e.sets if of in scored), *sorted(scored - e.sets.keys())]:
        _add_set(out["modes"], points, of, against, resamples, guard=of in e.sets and e.sets[of].guard)
    _add_coverage(out["modes"], values, against, resamples)
    out["equal"] = {axis: _equal(comparison, finals, values, axis, resamples) for axis in EQUAL}
    out["curves"] = [
        {"mode": mode, "method": method, "points": found}
        for (mode, method), runs in finals.items()
        if len(found := curve(list(runs.values()))) >= ON_THE_WAY
    ]
    return out


def of_comparison(comparison: Comparison, tables: Sequence[CellTable]) -> tuple[dict, Points]:
    """The final runs of each line, and the last evaluation of each line's runs; a base's stands in its runs too."""
    finals: dict[tuple[str, str], dict[tuple[str, int], CellTable]] = {}
    points: Points = {}
    for mode in comparison.modes:
        own = [table for table in tables if table.mode == mode and table.base in comparison.base_names]
        bases = {(t.base, t.seed): t.last for t in own if t.kind == "base"}
        ended = [t for t in own if t.kind == "final"]
        for table in ended:
            if table.points[0].step == 0:  # modes that share a base have it under the first one's name
                bases.setdefault((table.base, table.seed), table.points[0])
        _on_the_same_problems(own)
        if bases:
            points[mode, BASE] = bases
        for method in comparison.methods_of(mode):
            seeds = comparison.seeds_of(method)
            runs = {(t.base, t.seed): t for t in ended if t.method == method and t.seed in seeds}
            if runs:
                finals[mode, method] = runs
                points[mode, method] = {run: table.last for run, table in runs.items()}
    return finals, points


def _on_the_same_problems(tables: Sequence[CellTable]) -> None:
    sets: dict[str, dict[str, str]] = {}
    for table in tables:
        if table.kind != "tuning":
            sets.setdefault(table.base, {}).setdefault(table.last.graded[""].problems, table.cell.name)
    for named in sets.values():
        if len(named) > 1:
            one, other, *_ = named.values()
            raise UserError(f"{one} and {other} were scored on different problems: delete the cells of one of them")


def values_of(points: dict[tuple[str, int], Point], of: str = "") -> Runs:
    return {run: point.graded[of].measures() for run, point in points.items() if of in point.graded}


def _told(points: dict[tuple[str, int], Point], of: str) -> dict[str, Any]:
    """What a line says of its answers beside their scores."""
    graded = [point.graded[of] for point in points.values() if of in point.graded]
    return {
        "seeds": sorted({seed for _, seed in points}),
        "runs": len(graded),
        "problems": len(graded[0].correct),
        "samples": graded[0].samples,
        **{name: fmean(getattr(g, name) for g in graded) for name in ("tokens_mean", "truncated", "answered")},
    }


def _add_set(modes: dict[str, dict], points: Points, of: str, against: str | None, resamples: int, guard: bool) -> None:
    values = {line: runs for line, found in points.items() if (runs := values_of(found, of))}
    for (mode, method), line in compared(values, against, resamples).items():
        told = _told(points[mode, method], of) | line
        if guard and method != BASE:
            told["guard"] = _outcome(told)
        modes[mode][method].setdefault("sets", {})[of] = told


def _outcome(line: dict[str, Any]) -> str:
    """What became of a guard, over the seeds: kept, lost or not compared."""
    moved = line.get("minus_base", {}).get(f"avg@{line['samples']}")
    if moved is None:
        return "not compared"
    return "lost" if moved["high_alone"] is not None and moved["high_alone"] < 0 else "kept"


def _answers(points: dict[tuple[str, int], Point]) -> dict[str, float] | None:
    """How different the answers are, and what one answer without chance scores; means over runs and problems."""
    graded = [point.graded[""] for point in points.values()]
    if any(g.unique is None for g in graded):
        return None
    out = {name: float(np.mean([np.mean(getattr(g, name)) for g in graded])) for name in ("unique", "entropy")}
    greedy: list[Graded] = [point.graded[GREEDY] for point in points.values() if GREEDY in point.graded]
    return out | ({"greedy": fmean(float(np.mean(g.correct)) / g.samples for g in greedy)} if greedy else {})


def _add_coverage(modes: dict[str, dict], values: dict[tuple[str, str], Runs], against: str | None, n: int) -> None:
    """`never`: how much of what the base never solves each method solves, at least once in its samples."""
    if not values:
        return
    most = _most(next(iter(next(iter(values.values())).values())))
    found = gained(values, most)
    for (mode, method), line in compared(found, against, n).items():
        of = {base: int(one[most].shape[0]) for (base, _), one in found[mode, method].items()}
        modes[mode][method]["never"] = {"problems": of, "score": line["scores"][most]} | (
            {"minus_against": line["minus_against"][most]} if "minus_against" in line else {}
        )


def _equal(
    comparison: Comparison, finals: dict, values: dict[tuple[str, str], Runs], axis: str, resamples: int
) -> dict[str, Any]:
    """The lines at what the budget's method spends; one with a run that spends less says what that spends."""
    reached: dict[tuple[str, str], Runs] = {}
    out: dict[str, Any] = {"modes": {}}
    for mode in comparison.modes:
        here = comparison.methods_of(mode)
        of = comparison.budget if comparison.budget in here else here[0]
        if (mode, of) not in finals or (mode, BASE) not in values:
            continue
        if any(len(run.points) < ON_THE_WAY for run in finals[mode, of].values()):
            continue
        budget = budget_of(list(finals[mode, of].values()), axis)
        if not budget:
            continue
        out["modes"][mode] = {"budget": budget, "of": of, "methods": {}}
        reached[mode, BASE] = values[mode, BASE]
        for method in here:
            runs: dict[tuple[str, int], CellTable] = finals.get((mode, method), {})
            if any(len(table.points) < ON_THE_WAY for table in runs.values()):
                out["modes"][mode]["methods"][method] = {"only_its_end": True}
                continue
            found = {run: _shown(at) for run, table in runs.items() if (at := at_budget(table, axis, budget))}
            if runs and len(found) == len(runs):
                reached[mode, method] = found
            elif runs:
                least = budget_of(list(runs.values()), axis)
                out["modes"][mode]["methods"][method] = {"never": least}
    lines: Lines = compared(reached, comparison.against, resamples)
    for (mode, method), line in lines.items():
        if method != BASE:
            avg = next(iter(line["scores"]))
            line["collapses"] = collapses(reached[mode, method], reached[mode, BASE], avg)
            out["modes"][mode]["methods"][method] = line
    return out


def _shown(values: Values) -> Values:
    """Avg@n and Pass@n."""
    avg = next(name for name in values if name.startswith("avg@"))
    return {name: values[name] for name in (avg, _most(values))}


def _most(values: Values) -> str:
    """Pass@n of all n samples."""
    return max((name for name in values if name.startswith("pass@")), key=lambda name: int(name[5:]))


def _tuning(comparison: Comparison, tables: Sequence[CellTable]) -> list[dict[str, Any]]:
    t = comparison.tuning
    if t is None:
        return []
    found = []
    scored = {(one.mode, one.method, one.lr): one for one in tables if one.kind == "tuning"}
    for mode in comparison.modes:
        here = comparison.methods_of(mode)
        for method in [m for m in here if comparison.tuned_for(mode, m) == m]:
            score = _scored_rates(scored, mode, method)
            tried = rates(t.learning_rates, score, t.widenings)
            best = chosen(tried, score)
            for rate in tried:
                if table := scored.get((mode, method, rate)):
                    graded = table.last.graded[""]
                    values_P = np.array(graded.correct) / graded.samples
                    e = estimate(values_P, 2000, 0)
                    found.append(
                        {"mode": mode, "method": method, "learning_rate": rate, "seed": table.seed}
                        | {"for": [m for m in here if comparison.tuned_for(mode, m) == method]}
                        | {"chosen": rate == best, "edge": rate == best and at_the_edge(tried, rate)}
                        | {"measure": f"avg@{graded.samples}", "steps": table.last.step, "problems": len(values_P)}
                        | {"score": {"value": e.value, "low": e.low, "high": e.high}}
                    )
    return found


def _scored_rates(scored: dict[tuple, CellTable], mode: str, method: str) -> Callable[[float], float | None]:
    def score(rate: float) -> float | None:
        table = scored.get((mode, method, rate))
        return table.avg() if table else None

    return score


def _mean_of(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of numbers in trees of the same shape."""
    return {
        name: _mean_of([tree[name] for tree in trees]) if isinstance(value, dict) else fmean(t[name] for t in trees)
        for name, value in trees[0].items()
    }


def _trained_on(runs: list[CellTable]) -> dict[str, Any]:
    known = {name: [v for run in runs if (v := run.trained_on.get(name)) is not None] for name in runs[0].trained_on}
    return {name: fmean(values) if values else None for name, values in known.items()}
