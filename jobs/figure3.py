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
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from trd_ray.config import apply_override, from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import table as markdown_table
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


def train(tree: Mapping[str, Any]) -> int:
    """One run, in a process of its own; it goes on where an earlier start ended. Returns its exit code."""
    recipe = Path(tree["run_dir"]).with_suffix(".yaml")
    write_atomically(recipe, yaml.safe_dump(dict(tree), sort_keys=False))
    return subprocess.run([sys.executable, "-m", "trd_ray.cli", "train", str(recipe), "--resume=auto"]).returncode


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

WIDTH = 960
LEFT, TOP = 64, 84  # of the first panel's frame
PLOT_W, PLOT_H = 246, 168
BETWEEN, BELOW, MARGIN = 62, 92, 44
LOOKS = dict(zip([line.name for line in LINES], ("vanilla", "trd", "raw"), strict=True))  # classes of STYLE
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 14px; font-weight: 600 }
.end { text-anchor: end } .middle { text-anchor: middle }
.paper { fill: #fff } .grid { stroke: #ddd } .frame { stroke: #888; fill: none }
path { fill: none; stroke-width: 2 } .band { fill-opacity: 0.18 } path.grid { stroke-width: 1 }
.vanilla { stroke: #d55e00 } .band.vanilla { fill: #d55e00 } .trd { stroke: #0072b2 } .band.trd { fill: #0072b2 }
.raw { stroke: #009e73; stroke-dasharray: 5 3 } .band.raw { fill: #009e73 } .band { stroke: none !important }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e6e6 } .paper { fill: #14161a } .grid { stroke: #333 }
  .vanilla { stroke: #f08a3c } .trd { stroke: #56b4e9 } .raw { stroke: #3ccf9f }
}
"""


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, with about so many steps between them."""
    raw = (high - low) / about if high > low else max(abs(high), 1.0) / about
    unit = 10.0 ** np.floor(np.log10(raw))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [float(n * step) for n in range(first, max(last, first + 1) + 1)]


def drawn(found: Found) -> str:
    """The figure as SVG: a row of panels for each mode that has lines."""
    modes = [mode for mode in MODES if any(key[0] == mode for key in found)]
    height = TOP + len(modes) * (PLOT_H + BELOW) - BELOW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="KL signal, perplexity gap and onset mass over training">',
        f'<style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{height}"/>',
        *_legend(),
    ]
    for down, mode in enumerate(modes):
        for right, panel in enumerate(PANELS):
            x, y = LEFT + right * (PLOT_W + BETWEEN), TOP + down * (PLOT_H + BELOW)
            lines = {name: over_seeds(several, panel.values) for (of, name), several in found.items() if of == mode}
            there = {name: line for name, line in lines.items() if line}  # seeds under way may share no step yet
            if there:
                parts += _panel(x, y, f"{mode.upper()}: {panel.title}", panel.unit, there)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    parts: list[str] = []
    x = LEFT
    for name, looks in LOOKS.items():
        parts += [f'<path class="{looks}" d="M{x} 24h28"/>', _text(x + 36, 28, name)]
        x += 64 + 7 * len(name)
    return [*parts, _text(WIDTH - 20, 28, "mean and range over seeds", "end")]


def _panel(
    x: int, y: int, title: str, unit: str, lines: Mapping[str, list[tuple[int, float, float, float]]]
) -> list[str]:
    points = [one for line in lines.values() for one in line]
    steps = [step for step, *_ in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    marks = ticks(min(0.0, *(low for *_, low, _ in points)), max(high for *_, high in points))
    bottom, top = marks[0], marks[-1]

    def across(step: float) -> float:
        return round(x + (step - first) / (last - first) * PLOT_W, 1)

    def down(value: float) -> float:
        return round(y + PLOT_H - (value - bottom) / (top - bottom) * PLOT_H, 1)

    def path(looks: str, at: Iterable[tuple[float, float]], end: str = "") -> str:
        return f'<path class="{looks}" d="M{"L".join(f"{across(s)} {down(value)}" for s, value in at)}{end}"/>'

    parts = [_text(x, y - 24, title, "title"), _text(x, y - 8, unit)]
    for mark in marks:
        parts.append(f'<path class="grid" d="M{x} {down(mark)}h{PLOT_W}"/>')
        parts.append(_text(x - 6, down(mark) + 4, f"{mark:.6g}", "end"))
    for step in sorted({first, (first + last) // 2, last}):
        parts.append(_text(across(step), y + PLOT_H + 16, str(step), "middle"))
    parts.append(_text(x + PLOT_W / 2, y + PLOT_H + 32, "step", "middle"))
    for name, line in lines.items():
        there = [(step, low) for step, _, low, _ in line]
        back = [(step, high) for step, _, _, high in reversed(line)]
        parts.append(path(f"band {LOOKS[name]}", there + back, end="Z"))
        parts.append(path(LOOKS[name], [(step, mean) for step, mean, *_ in line]))
    return [*parts, f'<rect class="frame" x="{x}" y="{y}" width="{PLOT_W}" height="{PLOT_H}"/>']


def _text(x: float, y: float, text: str, looks: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{looks}">{escape(text)}</text>'


def settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="figure3", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True, help="of the runs and of what is drawn")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--draw", action="store_true", help="start nothing: draw what is there")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error("there must be 1 seed or more")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = settings(arguments)
    directory, seeds = given.directory.expanduser().absolute(), range(given.seeds)
    try:
        trees = [
            run_tree(mode, run, seed, directory, given.overrides) for seed in seeds for mode in MODES for run in RUNS
        ]
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    directory.mkdir(parents=True, exist_ok=True)
    for tree in [] if given.draw else trees:
        if not is_done(tree) and train(tree):
            print(f"the run {tree['name']} failed: the same command goes on", file=sys.stderr)
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
