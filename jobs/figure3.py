"""`python jobs/figure3.py --directory DIR [--seeds 3]`: the paper's Figure 3 on the miniature world, measured in runs.

    for each seed, in OPD and in OPSD: a run of TRD (y_r, refine view) and a vanilla one (y_o, vanilla view)
    rows/ of each: what diagnostics found at every token -> KL signal, PPL gap, onset mass -> figure3.svg, table, JSON

Three lines in each panel, mean and range over the seeds:

- what the vanilla run trains on: y_o under the vanilla view
- what TRD trains on: y_r under the refine view
- the y_o of the same rows of the TRD run under the vanilla view: the same problems and weights, not refined

All are scored by the weights before the update. Nothing is tuned: both runs have the learning rate of the recipe.

Started again, the same command goes on: what stands in the directory is not made again. `--draw` only draws what is
there. Overrides (`steps=10`, `diagnostics.rows=32`, `cluster.memory_gib=20`) reach every run.

Exit codes: 0 it is drawn, whatever it says, 2 a mistake in the options, a run that failed, or nothing to draw.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seeded_runs

from trd_ray.config import apply_override, from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import table as markdown_table
from trd_ray.report import line_panels
from trd_ray.token_values import perplexity

MODES = ("opd", "opsd")
RUNS = {"trd": ("y_r", "refine"), "vanilla": ("y_o", "vanilla")}  # name -> train.trajectory, teacher.view
LOOKED_AT = {"rows": 16, "every_steps": 1}


class Line(NamedTuple):
    name: str
    run: str
    trajectory: str
    view: str


class Panel(NamedTuple):
    title: str
    unit: str
    values: str  # of Point


class Point(NamedTuple):
    """Of a step: means over all tokens of the rows that were looked at."""

    kl: float
    gap: float  # perplexity of the student minus that of the teacher
    onset: float  # per mille


LINES = (
    Line("vanilla run: y_o", "vanilla", "y_o", "vanilla"),
    Line("TRD run: y_r, refined", "trd", "y_r", "refine"),
    Line("TRD run: its y_o, unrefined", "trd", "y_o", "vanilla"),
)
PANELS = (
    Panel("KL signal", "nats a token", "kl"),
    Panel("PPL gap", "student - teacher", "gap"),
    Panel("Epistemic-onset mass", "per mille", "onset"),
)
Series = dict[int, Point]  # by step
Found = dict[tuple[str, str], list[Series]]  # mode and name of a line -> one for each seed


# The runs


def run_tree(mode: str, run: str, seed: int, directory: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    trajectory, view = RUNS[run]
    tree = recipe_tree(f"miniature_{mode}")
    name = f"{mode}-{run}-{seed}"
    tree |= {"name": name, "seed": seed, "run_dir": str(directory / name), "diagnostics": dict(LOOKED_AT)}
    tree |= {"train": {"trajectory": trajectory}, "evaluation": {"path": None}}
    tree["teacher"]["view"] = view
    for override in overrides:
        apply_override(tree, override)
    from_tree(tree)  # a mistake in an override is told before anything starts
    return tree


def is_done(tree: Mapping[str, Any]) -> bool:
    metrics = Path(tree["run_dir"]) / "metrics.jsonl"
    return metrics.is_file() and len(metrics.read_text().splitlines()) >= tree["steps"]


# What they have found


def point(scored: Sequence[Mapping[str, Any]]) -> Point:
    """Of several trajectories, each token alike."""

    def mean(name: str) -> float:
        return float(np.concatenate([np.asarray(one[name], np.float64) for one in scored]).mean())

    gap = perplexity(mean("student_nll")) - perplexity(mean("teacher_nll"))
    return Point(mean("kl"), gap, 1000 * mean("onset"))


def measured(run_dir: Path) -> dict[tuple[str, str], Series]:
    """(trajectory, view) -> what the run's diagnostics found in each step, where it is finite.

    What trained is among the rows once more, and left out: it may be of other weights.
    """
    found: dict[tuple[str, str], Series] = {}
    for step, _ in RunDirectory(run_dir).row_files():
        by_view: dict[tuple[str, str], list[Any]] = {}
        for scored in RunDirectory(run_dir).read_step(step)["scored"].to_pylist():
            for one in scored or []:
                if not one["trained"]:
                    by_view.setdefault((one["trajectory"], one["view"]), []).append(one)
        for key, several in by_view.items():
            if np.isfinite(of_step := point(several)).all():
                found.setdefault(key, {})[step] = of_step
    return found


def gathered(directory: Path, seeds: Iterable[int]) -> Found:
    """Every line that there is something of; a run that is not there yet has no part in it."""
    found: Found = {}
    for mode in MODES:
        for seed in seeds:
            runs = {run: measured(directory / f"{mode}-{run}-{seed}") for run in RUNS}
            for line in LINES:
                if series := runs[line.run].get((line.trajectory, line.view)):
                    found.setdefault((mode, line.name), []).append(series)
    return found


def over_seeds(several: Sequence[Series], values: str) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) of the steps that every seed has."""
    steps = sorted(set.intersection(*(set(series) for series in several)))
    at = {step: [getattr(series[step], values) for series in several] for step in steps}
    return [(step, float(np.mean(at[step])), min(at[step]), max(at[step])) for step in steps]


def shown(found: Found) -> str:
    """Means over the steps, and the lowest and highest seed, as a Markdown table."""
    rows = [["", *(f"{panel.title}, {panel.unit}" for panel in PANELS)]]
    for (mode, name), several in found.items():
        cells = []
        for panel in PANELS:
            seeds = [float(np.mean([getattr(p, panel.values) for p in series.values()])) for series in several]
            cells.append(f"{np.mean(seeds):.3g} [{min(seeds):.3g}, {max(seeds):.3g}]")
        rows.append([f"{mode.upper()}, {name}", *cells])
    return markdown_table(rows)


# The drawing


def drawn(found: Found) -> str:
    """The figure as SVG: a row of panels for each mode that has lines."""
    modes = [mode for mode in MODES if any(key[0] == mode for key in found)]
    rows = [[_panel(mode, panel, found) for panel in PANELS] for mode in modes]
    about = "KL signal, perplexity gap and onset mass over training"
    return line_panels.drawn(rows, about, "step", "mean and range over seeds")


def _panel(mode: str, panel: Panel, found: Found) -> line_panels.LinePanel:
    """Seeds under way may share no step yet: such a line has no points."""
    lines = {name: over_seeds(several, panel.values) for (of, name), several in found.items() if of == mode}
    return line_panels.LinePanel(f"{mode.upper()}: {panel.title}", panel.unit, lines)


def settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = seeded_runs.parser("figure3", __doc__)
    parser.add_argument("--draw", action="store_true", help="start nothing: draw what is there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = settings(arguments)
        directory, seeds = given.directory, range(given.seeds)
        trees = [
            run_tree(mode, run, seed, directory, given.overrides) for seed in seeds for mode in MODES for run in RUNS
        ]
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    directory.mkdir(parents=True, exist_ok=True)
    if not given.draw and not seeded_runs.train_all(trees, is_done):
        return 2
    found = gathered(directory, seeds)
    if not found:
        print(f"{directory} has no run with diagnostics yet: leave out --draw to make them", file=sys.stderr)
        return 2
    text = shown(found)
    write_atomically(directory / "figure3.svg", drawn(found))
    write_atomically(directory / "table.md", text + "\n")
    results = [
        {"mode": mode, "line": name, "seeds": [{step: p._asdict() for step, p in s.items()} for s in several]}
        for (mode, name), several in found.items()
    ]
    write_atomically(directory / "results.json", json.dumps(results, indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
