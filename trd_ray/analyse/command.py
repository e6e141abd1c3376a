"""`trd analyse RUN [WHAT]`: what recorded rows say of the signal, of refinement and of trajectories.

    RUN, WHAT, --steps, --source  ->  diagnostics.whole.of_run()  ->  tables of 80 columns, or JSON

RUN is a run, one that goes on or has crashed, a corpus, or a directory of `trd evaluate`: only files are read, and none
is written. Without WHAT everything that there is is shown, and for the rest a sentence says what to set. Asked for one
thing that is not there, that sentence is the error.
"""

import json
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trd_ray.analyse.analysis_tables import TABLES, Drawn
from trd_ray.config import did_you_mean
from trd_ray.diagnostics import whole
from trd_ray.errors import UserError
from trd_ray.record.markdown import visible
from trd_ray.session import seen

RUNS = Path("runs")
WIDTH = 80
Steps = tuple[int | None, int | None]


def analyse(run: str, what: str | None, as_json: bool, steps: Steps = (None, None), source: str | None = None) -> int:
    directory = found_directory(run)
    only = (what,) if what else tuple(whole.PARTS)
    found = whole.of_run(directory, only=only, steps=steps, source=source)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    if what and what not in found:
        raise UserError(found["missing"][what])
    console = Console(width=WIDTH, highlight=False)
    console.print(Text(visible(_headline(directory, found["about"]))), soft_wrap=True)
    for part in only:
        if part in found:
            for drawn in TABLES[part](found[part]):
                _draw(console, drawn)
    for sentence, parts in _by_sentence(found.get("missing", {})).items():
        console.print(Text(visible(f"\nNo {', '.join(parts)}: {sentence}"), style="dim"))
    return 0


def found_directory(run: str) -> Path:
    """The directory that is meant: a path, or a name below runs/. Raises UserError."""
    for place in (Path(run).expanduser(), RUNS / run):
        if place.is_dir():
            return place.absolute()
    known = [str(directory.relative_to(RUNS)) for directory in seen.runs_below(RUNS)]
    raise UserError(
        f"there is no run {run}{did_you_mean(run, known) if known else ''}: name the directory of a run, of a corpus "
        f"or of an evaluation, or one below {RUNS}/"
    )


def _by_sentence(missing: dict[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for part, sentence in missing.items():
        out.setdefault(sentence, []).append(part)
    return out


def _headline(directory: Path, about: dict[str, Any]) -> str:
    steps = about["steps"]
    if not steps:
        return f"{directory.name}: no rows yet"
    many = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"
    where = many if about["from"] == "rows" else f"{len(steps)} evaluated benchmark{'s' * (len(steps) > 1)}"
    parts = [f"{directory.name}: {about['rows']} rows, {where}"]
    if about["faults"]:
        parts.append(f"{about['faults']} that could not be made or judged are left out")
    return "; ".join(parts)


def _draw(console: Console, drawn: Drawn) -> None:
    header, *body = drawn.lines
    widths = [max(cell_len(visible(line[i])) for line in drawn.lines) for i in range(len(header))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for i, cell in enumerate(header):
        as_text = i < drawn.text_columns
        justify = "left" if as_text else "right"
        table.add_column(Text(cell), justify=justify, no_wrap=not as_text or not i, overflow="fold")
    for line in body:
        table.add_row(*(Text(visible(cell)) for cell in line))
    console.print()
    console.print(Text(drawn.title, style="bold"))
    console.print(table)
    console.print(Text(drawn.note, style="dim"))
