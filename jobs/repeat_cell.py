"""`python jobs/repeat_cell.py --directory DIR`: two cells of the comparison, in minutes, expected beside found.

    repeat_cell.json: recipe, what is set, the scores to expect -> a run of each cell, seed 0 -> Avg@16 of both -> table

The cells are OPSD with TRD and OPSD with forward KL on the raw rollouts: the same student, teacher, problems, steps and
learning rate. A found score is as expected where it lies in the interval that a further seed should fall into. Where
nothing is expected yet, what is found stands alone.

Started again, the same command goes on. Overrides may say where a cell runs (`cluster.memory_gib=20`), and nothing that
its score depends on. `--seeds 5 --record` writes what to expect into repeat_cell.json, from that many seeds.

Exit codes: 0 as expected, or nothing is expected yet, 1 a score is not, 2 a mistake in the options or a failed run.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import seeded_runs
from scipy import stats

from trd_ray.config import apply_override, from_tree, keys, recipe_tree
from trd_ray.config.effects import ANSWERS, LENGTH, NUMBERS, ROWS, SCORES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import table
from trd_ray.score.stats import LEVEL, Score, percent

CELLS = Path(__file__).with_suffix(".json")
RECORDED_FROM = 3  # seeds that an interval for a further one needs at least


@dataclass(frozen=True)
class Expected:
    """Avg@k in percent: the mean over seeds, and the interval that a further seed should fall into."""

    mean: float
    low: float
    high: float
    seeds: int


def cells() -> dict[str, dict[str, Any]]:
    return json.loads(CELLS.read_text())


def run_tree(name: str, seed: int, directory: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    cell = cells()[name]
    tree = recipe_tree(cell["recipe"])
    tree |= {"name": f"{name}-{seed}", "seed": seed, "run_dir": str(directory / f"{name}-{seed}")}
    free = keys.not_affecting(ROWS, NUMBERS, VERDICTS, ANSWERS, SCORES, LENGTH) - {"name", "run_dir"}
    for override in overrides:
        key = override.partition("=")[0]
        if key in keys.effects() and (key not in free or key.startswith("evaluation.")):
            raise UserError(f"{key} would make another cell: leave it out, or change it in {CELLS.name}")
        apply_override(tree, override)
    for key, value in cell["set"].items():
        apply_override(tree, f"{key}={json.dumps(value)}")
    from_tree(dict(tree))
    return tree


def expected(name: str) -> Expected | None:
    found = cells()[name]["expected"]
    return Expected(**found) if found else None


def expected_of(scores: Sequence[float]) -> Expected:
    """What a further seed should give, from the scores of several, in percent: a 95% prediction interval.

    mean +- t(n - 1) s sqrt(1 + 1 / n), as for a further draw from a normal distribution.
    """
    n, mean = len(scores), fmean(scores)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * stdev(scores) * (1 + 1 / n) ** 0.5
    return Expected(round(mean, 1), round(max(0.0, mean - half), 1), round(min(100.0, mean + half), 1), n)


def is_expected(found: float, of: Expected | None) -> bool:
    return of is None or of.low <= found <= of.high


def avg(score: Score) -> float:
    """In percent, as it is told."""
    return round(100 * score.scores[f"avg@{score.samples}"].value, 1)


def shown(found: Mapping[str, Sequence[Score]]) -> str:
    rows = [["cell", "seed", "expected", "found", "over problems"]]
    for name, scores in found.items():
        of = expected(name)
        told = f"{of.mean:.1f} [{of.low:.1f}, {of.high:.1f}], {of.seeds} seeds" if of else "not measured yet"
        for seed, score in enumerate(scores):
            value = avg(score)
            mark = "" if is_expected(value, of) else " **not as expected**"
            rows.append([name, str(seed), told, f"{value:.1f}{mark}", percent(score.scores[f"avg@{score.samples}"])])
    return table(rows)


def record(found: Mapping[str, Sequence[Score]]) -> None:
    """Write what to expect of these cells from now on."""
    tree = cells()
    for name, scores in found.items():
        tree[name]["expected"] = asdict(expected_of([avg(score) for score in scores]))
    write_atomically(CELLS, json.dumps(tree, indent=2) + "\n")


def scored(tree: Mapping[str, Any]) -> Score:
    return next(one for one in RunDirectory(Path(tree["run_dir"])).read_evaluations() if one.name == "trained")


def settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = seeded_runs.parser("repeat_cell", __doc__, seeds=1)
    parser.add_argument("--cells", default=",".join(cells()), help="some of them (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write what is found as what is to be expected")
    given = parser.parse_args(arguments)
    given.cells = given.cells.split(",")
    if unknown := [name for name in given.cells if name not in cells()]:
        raise UserError(f"there is no cell {unknown[0]!r}: choose from {', '.join(cells())}")
    if given.record and given.seeds < RECORDED_FROM:
        raise UserError(f"--record needs {RECORDED_FROM} seeds or more, for how far they lie apart: give --seeds")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = settings(arguments)
        trees = {
            name: [run_tree(name, seed, given.directory, given.overrides) for seed in range(given.seeds)]
            for name in given.cells
        }
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    given.directory.mkdir(parents=True, exist_ok=True)
    if not seeded_runs.train_all(tree for several in trees.values() for tree in several):
        return 2
    found = {name: [scored(tree) for tree in several] for name, several in trees.items()}
    if given.record:
        record(found)
    print(shown(found))
    return 0 if all(is_expected(avg(one), expected(name)) for name, several in found.items() for one in several) else 1


if __name__ == "__main__":
    sys.exit(main())
