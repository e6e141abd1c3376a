"""The tables of a comparison: comparison.md, comparison.json, and the same on the terminal.

results -> lines of text (header first) -> Markdown, or rich tables
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trd_ray.compare.plan import ComparisonPlan
from trd_ray.compare.results import STAGES, results
from trd_ray.files import write_atomically
from trd_ray.record import markdown
from trd_ray.session.inputs import Inputs

Lines = list[list[str]]


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


def tables(found: dict[str, Any]) -> list[tuple[str, Lines, str]]:
    """Every table that has something to show, as (title, header and rows, what they mean)."""
    lines = [(mode, method, line) for mode, of_mode in found["modes"].items() for method, line in of_mode.items()]
    if not lines:
        return []
    runs = [(mode, method, line) for mode, method, line in lines if "cost" in line]
    made = [_scores(found, lines), _cost(runs), _trained_on(runs), _tuning(found)]
    return [one for one in made if len(one[1]) > 1]


def _scores(found: dict[str, Any], lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    some = lines[0][2]
    avg, last = f"avg@{some['samples']}", f"pass@{max(int(m[5:]) for m in some['scores'] if m.startswith('pass@'))}"
    against = found["against"]
    header = ["", "learning rate", avg.capitalize(), "over seeds"]
    differences = [("minus_base", "base")] + ([("minus_against", against)] if against else [])
    header += [f"{avg.capitalize()} - {other}" for _, other in differences]
    header += [last.capitalize(), *(f"{last.capitalize()} - {other}" for _, other in differences), "tokens"]
    out = [header]
    for mode, method, line in lines:
        spread = line["scores"][avg]["std_over_seeds"]
        cells = [f"{mode} {method}", f"{line['learning_rate']:g}" if "learning_rate" in line else ""]
        cells += [_percent(line["scores"][avg]), "" if spread is None else f"{100 * spread:.1f}"]
        cells += [_percent(line.get(key, {}).get(avg), signed=True) for key, _ in differences]
        cells.append(_percent(line["scores"][last]))
        cells += [_percent(line.get(key, {}).get(last), signed=True) for key, _ in differences]
        out.append([*cells, f"{line['tokens_mean']:.1f}"])
    seeds = len(found["seeds"])
    note = (
        f"{some['problems']} held-out problems, {some['samples']} samples each, {seeds} seed{'s' * (seeds > 1)}. "
        f"Percent; in brackets the {found['level']:.0%} interval over problems of the seeds' mean. "
        "Differences are paired by problem. Over seeds: the standard deviation of the seeds' scores. Tokens: the mean "
        "length of an answer."
    )
    return "Scores", out, note


def _cost(lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    out = [["a run", "tokens sampled", "refined", "scored", "trained", "seconds", *STAGES]]
    for mode, method, line in lines:
        tokens = line["cost"]["tokens"]
        seconds = line["cost"]["seconds"]
        out.append(
            [f"{mode} {method}", *(f"{tokens[kind]:,.0f}" for kind in ("sampled", "refined", "scored", "trained"))]
            + [f"{seconds[stage]:.1f}" for stage in ["step", *STAGES]]
        )
    note = (
        "Means over seeds. Refined: all candidates. Scored: refinements whose likelihood under the student was asked "
        "for. Seconds are those of the steps; a stage's are the wall time in which it had work under way, and stages "
        "overlap. The start of the learner and the evaluation are not in them."
    )
    return "Cost", out, note


def _trained_on(lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    forms = {
        "raw_passed": ("raw pass", ".3f"),
        "refined_passed": ("refined pass", ".3f"),
        "raw_tokens": ("raw tokens", ".1f"),
        "refined_tokens": ("refined tokens", ".1f"),
        "kl_first": ("KL at first", ".4f"),
        "kl_last": ("at last", ".4f"),
        "grad_norm": ("gradient norm", ".3f"),
    }
    out = [["", *(label for label, _ in forms.values())]]
    for mode, method, line in lines:
        values = [(line["trained_on"][key], form) for key, (_, form) in forms.items()]
        out.append([f"{mode} {method}", *("-" if v is None else format(v, form) for v, form in values)])
    note = (
        "Means over steps and seeds. KL: the forward KL of student and teacher in nats a trained token, whatever is "
        "minimised, over the first and the last quarter of the steps."
    )
    return "What they trained on", out, note


def _tuning(found: dict[str, Any]) -> tuple[str, Lines, str]:
    scored = found["tuning"]
    rates = sorted({entry["learning_rate"] for entry in scored})
    out = [["", *(f"{rate:g}" for rate in rates)]]
    for mode, method in dict.fromkeys((entry["mode"], entry["method"]) for entry in scored):
        cells = {e["learning_rate"]: e for e in scored if (e["mode"], e["method"]) == (mode, method)}
        out.append([f"{mode} {method}", *(_tuned(cells.get(rate)) for rate in rates)])
    if not scored:
        return "Learning rates", [], ""
    some = scored[0]
    note = (
        f"{some['measure'].capitalize()} on {some['problems']} problems that neither train nor stand above, after "
        f"{some['steps']} steps with one seed; > marks the learning rate of the final runs."
    )
    return "Learning rates", out, note


def _tuned(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None else f"{'> ' if entry['chosen'] else ''}{_percent(entry['score'])}"


def _percent(e: dict[str, Any] | None, signed: bool = False) -> str:
    if e is None:
        return ""
    sign = "+" if signed else ""
    if e["low"] is None:
        return f"{100 * e['value']:{sign}.1f}"
    return f"{100 * e['value']:{sign}.1f} [{100 * e['low']:{sign}.1f}, {100 * e['high']:{sign}.1f}]"


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
    return Group(drawn, Text(f"{total}\nin {plan.path}"))


def samples(inputs: Inputs, trains: bool) -> tuple[int, int]:
    """What a run asks the engines for at most: (rollouts and refinements, answers in its evaluation)."""
    r = inputs.recipe
    rows = inputs.total_steps * r.rollouts_per_step
    rollouts = round(rows * (1 + r.most_refinements * r.refined_share)) if trains else 0
    held_out = ({"": inputs.held_out} if inputs.held_out else {}) | inputs.held_out_sets
    return rollouts, sum(table.num_rows * r.evaluation.of(name).samples for name, table in held_out.items())


def _begun(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()
