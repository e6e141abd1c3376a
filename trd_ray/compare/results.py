"""Finished cells become numbers: scores over seeds, differences, costs, and what the methods trained on.

    ComparisonPlan -> results() -> a plain dict, which is comparison.json and what the tables show

- Seeds are averaged within each problem, then problems are resampled. So an interval says how far a number would move
  with other problems of the same kind.
- The mean of each seed and their standard deviation say how far it moves with another seed.
- Only seeds that both sides have finished enter a difference.
- Each of evaluation.sets has the same numbers, below `sets` of a method. A guard is lost where the mean over seeds is
  below that of the base, clear of chance.
"""

from statistics import fmean
from typing import Any

import numpy as np

from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan
from trd_ray.record.directory import RunDirectory
from trd_ray.record.generated import KINDS, generated
from trd_ray.record.ledger import facts_of_run
from trd_ray.report.comparison_tables import STAGES
from trd_ray.score.stats import LEVEL, Estimate, Score, estimate, measures, paired_difference

BASE = "base"  # beside the methods, of which none may have this name
TRAINED_ON = {  # name in comparison.json -> metric of a step
    "raw_passed": "y_o/passed",
    "refined_passed": "y_r/passed",
    "raw_tokens": "y_o/tokens_mean",
    "refined_tokens": "y_r/tokens_mean",
    "grad_norm": "grad_norm",
}


def results(plan: ComparisonPlan, failures: dict[str, str]) -> dict[str, Any]:
    comparison = plan.comparison
    out: dict[str, Any] = {
        "name": comparison.name,
        "level": LEVEL,
        "seeds": comparison.seeds,
        "against": comparison.against,
        "modes": {},
        "tuning": _tuning(plan),
        "failures": failures,
        "unfinished": [c.name for c in plan.cells() if plan.score(c) is None],
    }
    for mode in comparison.modes:
        found = _lines(plan, mode)
        of_sets = {name: _lines(plan, mode, name) for name in plan.sets(mode)}
        for method, line in found.items():
            if method != BASE:
                runs = [RunDirectory(plan.path / Cell("final", mode, method, seed).name) for seed in line["seeds"]]
                lr = plan.recipe(Cell("final", mode, method, 0)).learner.lr
                line = {"learning_rate": lr} | line | {"cost": _cost(runs), "trained_on": _trained_on(runs)}
            sets = {name: lines[method] for name, lines in of_sets.items() if method in lines}
            found[method] = line | ({"sets": sets} if sets else {})
        out["modes"][mode] = found
    return out


def _lines(plan: ComparisonPlan, mode: str, of: str = "") -> dict[str, dict[str, Any]]:
    """The base and each method of a mode that has a finished cell -> its scores on evaluation.path, or on a set."""
    comparison = plan.comparison
    bases = _scores(plan, [plan.base(mode, seed) for seed in comparison.seeds], of)
    finals = {m: _scores(plan, [Cell("final", mode, m, s) for s in comparison.seeds], of) for m in comparison.methods}
    resamples = plan.recipe(Cell("base", mode, "", 0)).evaluation.bootstrap
    against = finals.get(comparison.against or "", {})
    found = {BASE: _line(bases, {}, {}, resamples)} if bases else {}
    for method, scores in finals.items():
        if scores:
            found[method] = _line(scores, bases, {} if method == comparison.against else against, resamples)
            if of and plan.sets(mode)[of].guard:
                found[method]["guard"] = _outcome(found[method])
    return found


def _outcome(line: dict[str, Any]) -> str:
    """What became of a guard, over the seeds: kept, lost or not compared."""
    moved = line.get("minus_base", {}).get(f"avg@{line['samples']}")
    if moved is None:
        return "not compared"
    return "lost" if moved["high"] is not None and moved["high"] < 0 else "kept"


def _scores(plan: ComparisonPlan, cells: list[Cell], of: str) -> dict[int, Score]:
    """Seed -> score, for the cells that are finished."""
    return {cell.seed: score for cell in cells if (score := plan.score(cell, of))}


def _line(scores: dict[int, Score], bases: dict, against: dict, resamples: int) -> dict[str, Any]:
    one = next(iter(scores.values()))  # problems, samples and measures are the same for every seed
    by_seed = {seed: _measures(score) for seed, score in scores.items()}
    line: dict[str, Any] = {
        "seeds": list(scores),
        "problems": one.problems,
        "samples": one.samples,
        "scores": {},
        "tokens_mean": fmean(s.tokens_mean for s in scores.values()),
        "truncated": fmean(s.truncated.value for s in scores.values()),
        "answered": fmean(s.answered.value for s in scores.values()),
    }
    measured = list(next(iter(by_seed.values())))
    for measure in measured:
        values = [float(np.mean(by_seed[seed][measure])) for seed in scores]
        line["scores"][measure] = _estimate(over_seeds(by_seed, measure, list(scores)), resamples) | {
            "by_seed": values,
            "std_over_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    for name, others in (("minus_base", bases), ("minus_against", against)):
        common = [seed for seed in scores if seed in others]
        if common and others[common[0]].per_problem.keys() == one.per_problem.keys():
            theirs = {seed: _measures(others[seed]) for seed in common}
            line[name] = {
                measure: _as_json(
                    paired_difference(
                        over_seeds(theirs, measure, common), over_seeds(by_seed, measure, common), resamples, 0
                    )
                )
                for measure in measured
                if measure in theirs[common[0]]
            }
    return line


def over_seeds(by_seed: dict[int, dict[str, np.ndarray]], measure: str, seeds: list[int]) -> np.ndarray:
    """The value of each problem, averaged over seeds."""
    return np.mean([by_seed[seed][measure] for seed in seeds], axis=0)


def _measures(score: Score) -> dict[str, np.ndarray]:
    """Measure -> its value for each problem, in the order of the problems' ids."""
    return measures(np.array([score.per_problem[p] for p in sorted(score.per_problem)], dtype=bool))


def _estimate(values_P: np.ndarray, resamples: int) -> dict[str, Any]:
    return _as_json(estimate(values_P, resamples, 0))


def _as_json(e: Estimate) -> dict[str, Any]:
    return {"value": e.value, "low": e.low, "high": e.high}


def _tuning(plan: ComparisonPlan) -> list[dict[str, Any]]:
    found = []
    for mode in plan.comparison.modes:
        for method in plan.comparison.methods:
            best = plan.best_lr(mode, method)
            for cell in plan.tuning_cells(mode, method):
                score = plan.score(cell)
                if score:
                    measure = f"avg@{score.samples}"
                    found.append(
                        {"mode": mode, "method": method, "learning_rate": cell.lr, "seed": cell.seed}
                        | {"measure": measure, "chosen": cell.lr == best, "steps": score.step}
                        | {"problems": score.problems, "score": _as_json(score.scores[measure])}
                    )
    return found


def _cost(runs: list[RunDirectory]) -> dict[str, Any]:
    """Means over seeds: tokens made and trained on, and seconds of the steps by stage. Stages overlap."""
    metrics = [run.read_metrics() for run in runs]
    tokens = [generated(facts_of_run(run.read_rows())) for run in runs]
    return {
        "tokens": {kind: fmean(t.get(kind, 0) for t in tokens) for kind in KINDS}
        | {"trained": fmean(sum(m.get("trained_tokens") or 0 for m in steps) for steps in metrics)},
        "seconds": {
            stage: fmean(sum(m.get(f"seconds/{stage}") or 0 for m in steps) for steps in metrics)
            for stage in ["step", *STAGES]
        },
    }


def _trained_on(runs: list[RunDirectory]) -> dict[str, Any]:
    """Means over steps and seeds; the KL has two means, over the first and the last quarter of the steps."""
    metrics = [run.read_metrics() for run in runs]
    out = {name: _mean([m for steps in metrics for m in steps], key) for name, key in TRAINED_ON.items()}
    quarter = max(1, len(metrics[0]) // 4)
    out["kl_first"] = _mean([m for steps in metrics for m in steps[:quarter]], "kl/mean")
    out["kl_last"] = _mean([m for steps in metrics for m in steps[-quarter:]], "kl/mean")
    return out


def _mean(metrics: list[dict], name: str) -> float | None:
    values = [m[name] for m in metrics if m.get(name) is not None]
    return fmean(values) if values else None
