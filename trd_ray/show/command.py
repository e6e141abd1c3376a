"""`trd show RUN`: one row of a run, an ended one, a crashed one or a corpus, in the terminal.

    RUN, what to look for  ->  row_search.py  ->  the row  ->  row_page.py  ->  lines; or JSON, or a list of rows

Exit codes: 0 it was shown, 2 there is no such run or row, which the sentence explains.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.record.markdown import visible
from trd_ray.rows import part
from trd_ray.show.pieces import Decoder, decoder_of, pieces
from trd_ray.show.row_page import Look, one_line, page_of
from trd_ray.show.row_search import RecordedRows, WantedRow, found, listed, run_named

PROBLEM_CHARS = 40  # of a problem in the list
HINT = (
    "others: --row N, --step S, --worst, --repaired, --broken, --failed, --passed, --dropped, "
    "--cut, --problem ID, --source NAME, and --list to see which there are; also --diff, --views, --by student, --json"
)


def show(
    run: str,
    wish: WantedRow,
    listing: int | None = None,
    as_json: bool = False,
    by: str = "kl",
    view: str | None = None,
    top: int | None = None,
    views: bool = False,
    diff: bool = False,
    evaluation: str | None = None,
    console: Console | None = None,
) -> int:
    """Print the row that is meant, or with `listing` a line for each of so many; returns 0. Raises UserError."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character is no reason to end
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore
    console = console or Console(highlight=False)
    rows = run_named(run, evaluation)
    if listing is not None:
        if wish.row is not None:
            raise UserError("--list shows many rows, and --row names one: leave one of them out")
        _print_list(console, listed(rows, wish, listing))
        return 0
    one, hint = _one(rows, wish)
    student, teacher, lacks = _decoders(rows.path, one)
    if as_json:
        print(_as_json(rows, one, student, teacher))
        return 0
    look = Look(console, student, teacher, lacks, by, view, top, views, diff)
    for line in page_of(one, look, rows):
        console.print(line, soft_wrap=not console.is_terminal)
    if hint:
        console.print(Text(f"\n{hint}", style="dim"), soft_wrap=not console.is_terminal)
    return 0


def _one(rows: RecordedRows, wish: WantedRow) -> tuple[dict[str, Any], str]:
    """The row, and how to ask for others where nothing was asked for: then it is the newest repaired one, if any is.

    Of an evaluation, which repairs nothing, it is the newest one that failed.
    """
    if wish.row is not None or wish.kind or wish.worst:
        return found(rows, wish), ""
    kind = "failed" if rows.evaluation else "repaired"
    try:
        one, what = found(rows, dataclasses.replace(wish, kind=kind)), f"the newest row that is {kind}"
    except UserError:
        one, what = found(rows, wish), f"the newest row, since none is {kind}"
    return one, f"{what}; {HINT}" if wish == WantedRow() else ""


def _decoders(path: Path, row: dict[str, Any]) -> tuple[Decoder | None, Decoder | None, str]:
    """The tokenizers of student and teacher, and in a sentence why there is none."""
    why = "tokens are not told apart, since their tokenizer is not to be had"
    try:
        recipe = config.stored(path / "recipe.yaml")
    except (UserError, OSError) as e:
        return None, None, f"{why}: {e}"
    newest = max((path / "checkpoints").glob("step-*/model"), default=None)
    s = recipe.student
    try:
        student = decoder_of(s.path, s.revision, s.trust_remote_code, newest)
    except UserError as e:
        return None, None, f"{why}: {e}"
    by_teacher = recipe.by_teacher
    theirs = by_teacher.get(row.get("teacher") or "") or next(iter(by_teacher.values()))
    if theirs.teacher_path == s.path:
        return student, student, ""
    t = theirs.teacher
    try:
        return student, decoder_of(theirs.teacher_path, t.revision, t.trust_remote_code), ""
    except UserError as e:
        return student, None, f"the student's tokenizer stands in for the teacher's, which is not to be had: {e}"


def _as_json(rows: RecordedRows, row: dict[str, Any], student: Decoder | None, teacher: Decoder | None) -> str:
    """Every column of the row, and for each trajectory its `pieces`: [first token, behind the last, text]."""
    told = {"run": str(rows.path)} | row
    for y, decoder in (("y_o", student), ("y_r", teacher or student)):
        if decoder and (ids := part(row, y, "ids")) is not None:
            cut = [[one.first, one.end, one.text] for one in pieces(decoder, ids)]
            told[y] = row[y] | {"pieces": cut}
    return json.dumps(_plain(told), allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, no numbers of NumPy."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a float16 has four digits
        value = round(float(value), 5)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_list(console: Console, rows: list[dict[str, Any]]) -> None:
    table = [("row", "step", "y_o", "tokens", "y_r", "tokens", "KL", "trained on", "problem")]
    for row in rows:
        kl = row["kl"]
        table.append((
            str(row["row"]), str(row["step"]), *_trajectory(row, "y_o"), *_trajectory(row, "y_r"),
            "-" if kl is None else f"{kl:.4f}", row["trajectory"] if row["train"] else "-",
            f"{one_line(row['problem_id'], 20)}: {one_line(row['problem'], PROBLEM_CHARS)}",
        ))  # fmt: skip
    left = (2, 4, 7, 8)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        text = Text(visible("  ".join(cells).rstrip()), no_wrap=True, overflow="ellipsis")
        console.print(text, soft_wrap=not console.is_terminal)


def _trajectory(row: dict[str, Any], y: str) -> tuple[str, str]:
    if row.get(y) is None:
        return "-", "-"
    passed = part(row, y, "passed")
    return "passed" if passed else "-" if passed is None else "failed", str(part(row, y, "tokens"))
