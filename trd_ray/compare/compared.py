"""Methods beside the base and beside one another: values of every run become scores and differences with intervals.

    (mode, method) -> (base, seed) -> measure -> a value for each problem   ->  compared()  ->  lines of a table

A difference pairs runs with the same base and seed, problem by problem. All differences of a measure in a table are
corrected together, those from the base and those from `against` alike (see trd_ray.score.two_level).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from trd_ray.compare.spending import Values
from trd_ray.score.stats import SHARE
from trd_ray.score.two_level import SeedBlock, alone, simultaneous

BASE = "base"  # beside the methods, of which none may have this name
COLLAPSED = 0.5  # a run has collapsed whose Avg is below this share of its base's

Run = tuple[str, int]  # base and seed
Runs = Mapping[Run, Values]
Lines = dict[tuple[str, str], dict[str, Any]]  # (mode, method) -> scores, minus_base, minus_against


def compared(values: Mapping[tuple[str, str], Runs], against: str | None, resamples: int) -> Lines:
    lines: Lines = {}
    differences: dict[str, dict[tuple, list[SeedBlock]]] = defaultdict(dict)
    for (mode, method), runs in values.items():
        if not runs:
            continue
        measured = list(next(iter(runs.values())))
        lines[mode, method] = {"scores": {m: _score(runs, m, resamples) for m in measured}}
        if method == BASE:
            continue
        sides = {"minus_base": BASE} | ({"minus_against": against} if against and method != against else {})
        for key, other in sides.items():
            for measure in measured:
                if found := paired(runs, values.get((mode, other), {}), measure):
                    differences[measure][mode, method, key] = found
    for measure, asked in differences.items():
        for (mode, method, key), found in simultaneous(asked, resamples, 0).items():
            lines[mode, method].setdefault(key, {})[measure] = asdict(found)
    return lines


def blocks(runs: Runs, measure: str) -> list[SeedBlock]:
    """The values of each base as [seeds, problems]."""
    found = []
    for base in dict.fromkeys(base for base, _ in sorted(runs)):
        seeds = sorted(seed for of, seed in runs if of == base)
        rows = [runs[base, seed][measure] for seed in seeds]
        found.append(SeedBlock(base, tuple(seeds), np.array(rows)))
    return found


def paired(ours: Runs, theirs: Runs, measure: str) -> list[SeedBlock]:
    """Ours minus theirs for the bases and seeds that both have, on the same problems."""
    common = {
        run: {measure: ours[run][measure] - theirs[run][measure]}
        for run in ours.keys() & theirs.keys()
        if measure in theirs[run] and theirs[run][measure].shape == ours[run][measure].shape
    }
    return blocks(common, measure)


def _score(runs: Runs, measure: str, resamples: int) -> dict[str, Any]:
    found = blocks(runs, measure)
    e = alone(found, resamples, 0, SHARE)
    by_seed = [float(runs[run][measure].mean()) for run in sorted(runs)]
    within = [block.values_SP.mean(axis=1).var(ddof=1) for block in found if len(block.seeds) > 1]
    spread = float(np.sqrt(np.mean(within))) if within else None
    told = {"value": e.value, "low": e.low, "high": e.high, "by_seed": by_seed, "std_over_seeds": spread}
    told["worst"] = min(by_seed)
    if len(found) > 1:
        told["by_base"] = {block.base: float(block.values_SP.mean()) for block in found}
    return told


def collapses(runs: Runs, bases: Runs, measure: str) -> int | None:
    """How many runs are below COLLAPSED of their base; None where a base is not known."""
    if not runs.keys() <= bases.keys():
        return None
    return sum(bool(runs[r][measure].mean() < COLLAPSED * bases[r][measure].mean()) for r in runs)


def never_solved(values: Mapping[tuple[str, str], Runs], mode: str, most: str) -> dict[str, np.ndarray]:
    """Base -> which problems none of its answers solves, whatever the seed; `most` is Pass@n of all n samples."""
    found: dict[str, np.ndarray] = {}
    for (base, _), measured in values.get((mode, BASE), {}).items():
        unsolved_P = measured[most] == 0
        found[base] = found.get(base, unsolved_P) & unsolved_P
    return {base: unsolved_P for base, unsolved_P in found.items() if unsolved_P.any()}


def gained(values: Mapping[tuple[str, str], Runs], most: str) -> dict[tuple[str, str], Runs]:
    """The coverage of each method on the problems that its base never solves."""
    out: dict[tuple[str, str], Runs] = {}
    for mode in dict.fromkeys(mode for mode, _ in values):
        unsolved = never_solved(values, mode, most)
        for (of, method), runs in values.items():
            if of == mode and method != BASE:
                kept = {run: {most: one[most][unsolved[run[0]]]} for run, one in runs.items() if run[0] in unsolved}
                if kept:
                    out[mode, method] = kept
    return out
