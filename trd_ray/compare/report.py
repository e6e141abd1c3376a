"""The tables of a comparison: comparison.md, comparison.json, and the same on the terminal.

results -> lines of text (header first) -> Markdown, or rich tables
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trd_ray.compare.grid import first_base
from trd_ray.compare.plan import ComparisonPlan
from trd_ray.compare.results import results
from trd_ray.files import write_atomically
from trd_ray.record import markdown
from trd_ray.report.comparison_tables import tables
from trd_ray.session.inputs import Inputs


def write(plan: ComparisonPlan, failures: dict[str, str]) -> dict[str, Any]:
    """Write both files from what is finished so far; returns what comparison.json holds."""
    found = results(plan, failures)
    write_atomically(plan.path / "comparison.json", json.dumps(found, indent=2))
    parts = [f"# {markdown.inline(found['name'])}"]
    for title, lines, note in tables(found):
        cells = [[markdown.inline(cell) for cell in line] for line in lines]
        parts.append(f"## {title}\n\n{markdown.table(cells)}\n\n{note}")
    parts += [f"- {markdown.inline(name)} failed: {markdown.inline(why)}" for name, why in failures.items()]
    if found["unfinished"]:
        parts.append(f"Not finished: {', '.join(markdown.inline(name) for name in found['unfinished'])}.")
    parts.append("Made by `trd compare`; its recipe is `comparison.yaml`, every number is in `comparison.json`.")
    write_atomically(plan.path / "comparison.md", "\n\n".join(parts) + "\n")
    return found


def rendered(found: dict[str, Any]) -> Group:
    """The tables and the failures as the terminal shows them."""
    parts = []
    for title, lines, note in tables(found):
        header, *body = lines
        drawn = Table(*header, title=title, title_justify="left", box=None, pad_edge=False)
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
    cells = plan.cells()
    for cell in cells:
        inputs = plan.inputs(cell)
        trains = cell.kind != "base"
        state = "done" if plan.score(cell) else "begun" if _begun(plan.path / cell.name) else "to do"
        tuned = cell.kind == "final" and plan.comparison.tuning and plan.best_lr(cell.mode, cell.method) is None
        lr = "" if not trains else "to be tuned" if tuned else f"{inputs.recipe.learner.lr:g}"
        drawn.add_row(cell.name, lr, state)
        if state != "done":
            left += 1
            steps += inputs.total_steps if trains else 0
            made += sum(samples(inputs, trains))
    total = f"{len(cells)} cells, {len(cells) - left} done, {left} left: {steps:,} optimizer steps and {made:,} samples"
    total += " at most" * any(plan.inputs(cell).recipe.train.trajectory == "repair" for cell in cells)
    return Group(drawn, Text("\n".join([total, *_scored_on(plan), f"in {plan.path}"])))


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
    return rollouts, sum(rows * r.evaluation.of(name).samples for name, rows in evaluated_problems(inputs).items())


def _begun(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()
