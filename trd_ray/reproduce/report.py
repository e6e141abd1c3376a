"""The table of a reproduction: reproduction.md, reproduction.json, and the same on the terminal.

Lines of judged figures -> a header and rows of text -> Markdown, or a table of rich
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trd_ray.config import Recipe
from trd_ray.files import write_atomically
from trd_ray.record import markdown
from trd_ray.reproduce.figures import CRITERIA, Figure, Figures
from trd_ray.reproduce.judged import FAILS, NOT_MEASURED, PASSES, ROLLOUTS, UNDECIDED, JudgedFigure, is_share
from trd_ray.reproduce.plan import ReproductionPlan
from trd_ray.score.stats import LEVEL, Estimate

Rows = list[list[str]]
NOTE = (
    f"Percent, with {LEVEL:.0%} intervals over problems; gains are trained - base, paired by problem. A score passes "
    "by its value, a gain by its whole interval: one that holds the bound leaves the figure undecided. Rollouts are "
    "measured as means over the run's steps."
)


def table(lines: list[JudgedFigure]) -> Rows:
    """A header and a row for each figure."""
    out = [["", "reported", "base here", "trained here", "gain here", "passes if", "verdict"]]
    for line in lines:
        ours = (_estimate(line.base, line), _estimate(line.score, line), _estimate(line.gain, line, signed=True))
        name = line.measure if line.where == ROLLOUTS else f"{line.where} {line.measure}"
        out.append([name, _reported(line.figure, line.measure), *ours, criteria(line.figure), line.verdict])
    return out


def criteria(figure: Figure) -> str:
    """The criteria of a figure in words."""
    words = {"score_at_least": "score >= {:g}", "gain_above": "gain > {:g}", "gain_below": "gain < {:g}"}
    found = {criterion: getattr(figure, criterion) for criterion in CRITERIA}
    return ", ".join(words[criterion].format(bound) for criterion, bound in found.items() if bound is not None)


def reproduced(lines: list[JudgedFigure]) -> bool:
    return all(line.verdict == PASSES for line in lines if criteria(line.figure))


def conclusion(lines: list[JudgedFigure]) -> str:
    """One sentence over all figures that have a criterion."""
    judged = [line for line in lines if criteria(line.figure)]
    found = Counter(line.verdict for line in judged)
    others = ", ".join(f"{found[v]} {v}" for v in (FAILS, UNDECIDED, NOT_MEASURED) if found[v])
    of = f"{found[PASSES]} of {len(judged)} figures pass{f', {others}' if others else ''}"
    return f"{'Reproduced' if reproduced(lines) else 'Not reproduced'}: {of}."


def rendered(title: str, lines: list[JudgedFigure], notes: list[str]) -> Group:
    """The table as the terminal shows it."""
    header, *body = table(lines)
    drawn = Table(*header, title=title, title_justify="left", box=None, pad_edge=False)
    for column in drawn.columns[1:5]:
        column.justify = "right"
    for row in body:
        drawn.add_row(*map(Text, row))
    return Group(drawn, Text("\n".join([NOTE, *map(_note, notes)]) + "\n", style="dim"))


def titled(recipe: Recipe, figures: Figures) -> str:
    return f"{recipe.name} beside {figures.source}"


def write(plan: ReproductionPlan, lines: list[JudgedFigure], notes: list[str]) -> Path:
    """Write both files; returns the place of the Markdown."""
    place = plan.directory / "reproduction.md"
    rows = [[markdown.inline(cell) for cell in row] for row in table(lines)]
    parts = [
        f"# {markdown.inline(titled(plan.recipe, plan.figures))}",
        markdown.inline(conclusion(lines)),
        markdown.table(rows),
    ]
    parts += [markdown.inline(NOTE), *(markdown.inline(_note(note)) for note in notes)]
    parts.append(
        "The run is in `run/`, the evaluations of its student before and after in `base/` and `trained/`. Made by "
        "`trd reproduce`; every number is in `reproduction.json`."
    )
    write_atomically(place, "\n\n".join(parts) + "\n")
    write_atomically(plan.directory / "reproduction.json", json.dumps(as_json(plan, lines), indent=2))
    return place


def as_json(plan: ReproductionPlan, lines: list[JudgedFigure]) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.name,
        "source": plan.figures.source,
        "level": LEVEL,
        "reproduced": reproduced(lines),
        "figures": [
            {"where": line.where, "measure": line.measure, "verdict": line.verdict}
            | line.figure.model_dump(exclude_none=True)
            | {
                f"our_{name}": asdict(value) if value else None
                for name, value in (("base", line.base), ("score", line.score), ("gain", line.gain))
            }
            for line in lines
        ],
    }


def _note(note: str) -> str:
    return f"Note: {note}."


def _reported(figure: Figure, measure: str) -> str:
    if figure.reported is None:
        return "-" if figure.gain is None else f"({figure.gain:+.1f})"
    value = f"{figure.reported:.1f}" if is_share(measure) else f"{figure.reported:,.0f}"
    return value if figure.gain is None else f"{value} ({figure.gain:+.1f})"


def _estimate(e: Estimate | None, line: JudgedFigure, signed: bool = False) -> str:
    if e is None:
        return ""
    if not is_share(line.measure):
        return f"{e.value:,.0f}"
    sign = "+" if signed else ""
    ends = "" if e.low is None or e.high is None else f" [{e.low:{sign}.1f}, {e.high:{sign}.1f}]"
    return f"{e.value:{sign}.1f}{ends}"
