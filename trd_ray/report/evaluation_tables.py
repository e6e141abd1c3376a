"""The results of `trd evaluate` as tables of text, which its report, the terminal and the page show.

    evaluation/<benchmark>.json  ->  read()  ->  results  ->  summary(), tables(), warned()

A table is a header and rows of plain text, with a title and what its numbers mean.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trd_ray.config import Recipe
from trd_ray.record import guards, warnings
from trd_ray.score import buckets, stats
from trd_ray.score.stats import FEW, LEVEL, RARE, Score, from_json, percent

Result = dict[str, Any]

NOTE = (
    f"Percent, with {LEVEL:.0%} intervals: bootstrap over problems (Jeffreys' where they are fewer than {FEW}, or "
    f"fewer than {RARE} differ from the rest), of problems ever solved Wilson's."
)
PAIRED_NOTE = "Differences are paired by problem."
SUMMARY_NOTE = (
    f"Problems x samples; percent, with {LEVEL:.0%} intervals over problems. Cut: samples that ended at the "
    "length limit; answered: samples with an answer."
)
MEAN_NOTE = "The mean is that of the benchmarks, whatever their size."
BUCKETS_NOTE = (
    "Problems by how often {0} solves them; Pass@n begins with the number of problems that any sample solves, and its "
    "interval is Wilson's. {0}'s own column is fixed by the grouping: sampled again, it would solve some of its first "
    "bucket too."
)


def read(directory: Path) -> list[Result]:
    """The results of all benchmarks that are finished in this directory, in the order of their names."""
    return [json.loads(place.read_text()) for place in sorted((directory / "evaluation").glob("*.json"))]


def warned(found: Result, recipe: Recipe) -> list[str]:
    """The warnings about what makes the numbers of this benchmark worth little."""
    limit = found["settings"]["evaluation"]["max_response_tokens"]
    score = from_json(found)
    told = warnings.of_score(score, recipe, limit, where=found["benchmark"]["name"])
    if guard(found) == "lost":
        told |= {"guard": guards.of_loss(found["benchmark"]["set"], score)}
    return list(told.values())


def guard(found: Result) -> str:
    """What became of a guard: kept, lost or not compared; "" for what is none."""
    return guards.verdict(from_json(found)) if found["benchmark"].get("guard") else ""


def scores_of(found: Result) -> list[Score]:
    """The base, if there is one, and the checkpoint."""
    base = [from_json(found["base"])] if found["base"] else []
    return [*base, from_json(found)]


def headline(found: Result) -> str:
    """The score of one benchmark in one line."""
    s = from_json(found)
    measures = (f"avg@{s.samples}", f"pass@{s.samples}")
    shown = [f"{measure.capitalize()} {percent(s.scores[measure])}" for measure in measures]
    shown += [f"guard {guard(found)}"] if guard(found) else []
    return f"{found['benchmark']['name']}: {', '.join(shown)}"


def summary(results: list[Result], recipe: Recipe) -> list[list[str]]:
    """Header and rows of text: one row for each benchmark, then their unweighted mean."""
    scores = [from_json(found) for found in results]
    compared = any(s.paired_with for s in scores)
    guarded = any(guard(found) for found in results)
    header = ["benchmark", "size", "Avg@n", "Pass@n", "cut", "answered", "p50 tokens"]
    lines = [header + (["Avg@n - base"] if compared else []) + (["guard"] if guarded else [])]
    for found, s in zip(results, scores, strict=True):
        avg, most = f"avg@{s.samples}", f"pass@{s.samples}"
        cells = [found["benchmark"]["name"], f"{s.problems} x {s.samples}", percent(s.scores[avg])]
        cells += [percent(s.scores[most]), f"{100 * s.truncated.value:.1f}", f"{100 * s.answered.value:.1f}"]
        cells.append(f"{s.tokens['p50']:.0f}")
        if compared:
            cells.append(percent(s.paired_with.differences[avg], signed=True) if s.paired_with else "-")
        lines.append(cells + ([guard(found)] if guarded else []))
    if len(scores) > 1:
        mean = _mean(results, recipe, all(s.paired_with for s in scores))
        lines.append(mean + [""] * (len(lines[0]) - len(mean)))
    return lines


def _mean(results: list[Result], recipe: Recipe, compared: bool) -> list[str]:
    """`compared` says whether all of them have a base."""
    scores = [[_passed(s) for s in scores_of(found)] for found in results]
    groups = [
        [passed_PS[-1].mean(axis=1) for passed_PS in scores],
        [passed_PS[-1].any(axis=1) for passed_PS in scores],
    ]
    if compared:
        groups.append([trained_PS.mean(axis=1) - base_PS.mean(axis=1) for base_PS, trained_PS in scores])
    means = [
        stats.mean_of_means(group, recipe.evaluation.bootstrap, recipe.seed, ends)
        for group, ends in zip(groups, (stats.SHARE, stats.SHARE, stats.DIFFERENCE), strict=False)
    ]
    cells = ["mean", "", *(percent(e) for e in means[:2]), "", "", ""]
    return cells + [percent(e, signed=True) for e in means[2:]]


def _passed(s: Score) -> np.ndarray:
    """Problems by samples, in the order of the problems' ids."""
    return np.array([s.per_problem[problem_id] for problem_id in sorted(s.per_problem)], dtype=bool)


def tables(found: Result) -> list[tuple[str, list[list[str]], str]]:
    """The tables of one benchmark, each as (title, header and rows, what they mean)."""
    scores = scores_of(found)
    b = found["benchmark"]
    checkpoint = scores[-1]
    about = f"{b['title']}, {checkpoint.problems} problems, {checkpoint.samples} samples each."
    about = " ".join([about, *(f"Note: {note}." for note in [*b["notes"], *found["base_differs"]])])
    grouped = [_bucket(tree) for tree in found["buckets"]]
    explained = " ".join([about, NOTE, *([PAIRED_NOTE] if checkpoint.paired_with else [])])
    out = [(b["name"], stats.table(scores, [s.name for s in scores]), explained)]
    note = BUCKETS_NOTE.format(scores[0].name)
    return [*out, (f"{b['name']}: by how often {scores[0].name} solves a problem", buckets.table(grouped), note)]


def _bucket(tree: dict[str, Any]) -> buckets.Bucket:
    columns = [
        buckets.Column(**c | {"avg": stats.Estimate(**c["avg"]), "solved": stats.Estimate(**c["solved"])})
        for c in tree["columns"]
    ]
    return buckets.Bucket(tree["label"], tree["problems"], columns)
