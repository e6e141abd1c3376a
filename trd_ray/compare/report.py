"""The tables of a comparison: comparison.md, comparison.json, curves/*.svg, claims.md where it was
made for them, and the tables on the terminal.

results -> lines of text (header first) -> Markdown, or rich tables
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trd_ray.compare import claims
from trd_ray.compare.cell_tables import CellTable
from trd_ray.compare.cells import of_plan
from trd_ray.compare.design import Comparison
from trd_ray.compare.grid import first_base
from trd_ray.compare.plan import ComparisonPlan
from trd_ray.compare.results import from_cells
from trd_ray.files import write_atomically
from trd_ray.record import markdown
from trd_ray.report.comparison_tables import tables, unfinished
from trd_ray.report.curve_svg import pictures
from trd_ray.session.inputs import Inputs

CURVES = "curves"
# Seconds on 2 cores: to start a learner, for a rollout or a refinement with its training, for an answer, to start
# engines. With them the 63 runs of `trd compare miniature` take the hour that they took.
A_RUN, A_ROLLOUT, AN_ANSWER, ENGINES = 10.0, 0.027, 0.006, 75.0


def write(plan: ComparisonPlan, failures: dict[str, str]) -> dict[str, Any]:
    """Write the files from what is finished so far; returns what comparison.json holds."""
    made = of_plan(plan)
    left = [cell.name for cell in plan.cells() if not plan.is_done(cell)]
    return write_found(plan.path, from_cells(plan.comparison, made, failures, left), plan.comparison, made)


def write_found(path: Path, found: dict[str, Any], comparison: Comparison, made: Sequence[CellTable]) -> dict[str, Any]:
    path.mkdir(parents=True, exist_ok=True)
    if comparison.claims:
        write_atomically(path / "claims.md", claims.of_world(comparison, made))
    write_atomically(path / "comparison.json", json.dumps(found, indent=2))
    drawn = pictures(found)
    for name, picture in drawn.items():
        (path / CURVES).mkdir(exist_ok=True)
        write_atomically(path / CURVES / name, picture)
    parts = [f"# {markdown.inline(found['name'])}"]
    for title, lines, note in tables(found):
        cells = [[markdown.inline(cell) for cell in line] for line in lines]
        parts.append(f"## {markdown.inline(title)}\n\n{markdown.table(cells)}\n\n{note}")
    parts += [f"![{picture}]({CURVES}/{picture})" for picture in drawn if "-avg-" in picture]
    parts += [f"- {markdown.inline(name)} failed: {markdown.inline(why)}" for name, why in found["failures"].items()]
    if left := unfinished(found["unfinished"]):
        parts.append(markdown.inline(left))
    parts.append("Made by `trd compare`; its recipe is `comparison.yaml`, every number is in `comparison.json`.")
    write_atomically(path / "comparison.md", "\n\n".join(parts) + "\n")
    return found


def rendered(found: dict[str, Any]) -> Group:
    """The tables and the failures as the terminal shows them."""
    parts = []
    for title, lines, note in tables(found):
        header, *body = lines
        drawn = Table(*header, title=Text(title, "table.title"), title_justify="left", box=None, pad_edge=False)
        for column in drawn.columns[1:]:
            column.justify = "right"
        for line in body:
            drawn.add_row(*map(Text, line))
        parts += [drawn, Text(f"{note}\n", style="dim")]
    parts += [Text(f"{name} failed: {why}") for name, why in found["failures"].items()]
    return Group(*parts)


def grid(plan: ComparisonPlan) -> Group:
    """A table of all cells with their states, and the steps and samples that are left."""
    drawn = Table("cell", "learning rate", "state", box=None, pad_edge=False)
    steps = made = left = 0
    seconds = 0.0
    cells = plan.cells()
    for cell in cells:
        inputs = plan.inputs(cell)
        trains = cell.kind != "base"
        state = "done" if plan.is_done(cell) else "begun" if _begun(plan.path / cell.name) else "to do"
        lr = "" if not trains else "to be tuned" if plan.lacks_rate(cell) else f"{inputs.recipe.learner.lr:g}"
        drawn.add_row(cell.name, lr, state)
        if state != "done":
            left += 1
            steps += inputs.total_steps if trains else 0
            rollouts, answers = samples(inputs, trains)
            made += rollouts + answers
            seconds += A_RUN * trains + A_ROLLOUT * rollouts + AN_ANSWER * answers
    total = f"{len(cells)} cells, {len(cells) - left} done, {left} left: {steps:,} optimizer steps and {made:,} samples"
    total += " at most" * any(plan.inputs(cell).recipe.train.trajectory == "repair" for cell in cells)
    lines = [total, *_scored_on(plan)]
    if left and all(plan.inputs(cell).recipe.student.path.startswith("miniature:") for cell in cells):
        hours = (seconds + ENGINES * len(plan.groups)) / 3600
        long = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
        lines.append(f"about {long} on 2 cores{_widening(plan)}")
    return Group(drawn, Text("\n".join([*lines, f"in {plan.path}"])))


def _widening(plan: ComparisonPlan) -> str:
    t = plan.comparison.tuning
    return f"; a grid whose best rate is at its end gets up to {t.widenings} more runs" if t and t.widenings else ""


def _scored_on(plan: ComparisonPlan) -> list[str]:
    """A line for each mode with evaluation.sets: the problems that its runs are scored on, and which are guards."""
    lines = []
    for mode in plan.comparison.modes:
        inputs = plan.inputs(first_base(plan.comparison, mode))
        e = inputs.recipe.evaluation
        shown = [
            f"{name or e.path}{' (guard)' * bool(name and e.sets[name].guard)} {rows} x {e.of(name).samples}"
            for name, rows in evaluated_problems(inputs).items()
        ]
        alone = "; learning rates are tuned without the sets" if plan.comparison.tuning else ""
        lines += [f"{mode} is scored on {', '.join(shown)}{alone}"] if e.sets else []
    return lines


def evaluated_problems(inputs: Inputs) -> dict[str, int]:
    """The number of problems of each held-out set, "" being evaluation.path."""
    main = {} if inputs.held_out is None else {"": inputs.held_out.num_rows}
    return main | {name: table.num_rows for name, table in inputs.held_out_sets.items()}


def samples(inputs: Inputs, trains: bool) -> tuple[int, int]:
    """What a run asks the engines for at most: (rollouts and refinements, answers in its evaluation)."""
    r = inputs.recipe
    rows = inputs.total_steps * r.rollouts_per_step
    rollouts = round(rows * (1 + r.most_refinements * r.refined_share)) if trains else 0
    every = r.evaluation.every_steps if trains else None
    times = 1 + (inputs.total_steps - 1) // every if every else 1  # the last one is made in any case
    answers = sum(rows * r.evaluation.of(name).samples for name, rows in evaluated_problems(inputs).items())
    return rollouts, times * answers


def _begun(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()
