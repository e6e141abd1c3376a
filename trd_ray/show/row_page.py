"""A row as a page for a terminal: its problem, y_o, y_r, verdicts and feedback, each token shaded by what was found.

    row, Look  ->  page_of()  ->  lines, each as wide as the screen at most

What a model and the data wrote is hostile. Characters that move the cursor, or hide or reorder text, become U+FFFD, and
each line of such a text begins with a bar, so that none can pass for a line of ours. Nothing in it is read as markup.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from trd_ray.record.markdown import visible
from trd_ray.rows import part
from trd_ray.show.pieces import Decoder, Piece, pieces, written
from trd_ray.show.row_search import RecordedRows
from trd_ray.show.shades import SCALES, STYLES, legend, level_of
from trd_ray.show.word_diff import difference

BAR = "| "
ENDED = {"stop": "ended by itself", "length": "cut at the length limit", "abort": "aborted"}
TRAJECTORIES = {"y_o": "y_o, the attempt", "y_r": "y_r, the refinement"}
TOP = 10  # tokens that are listed where there are no colors
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 160  # characters of what a verifier extracted or said, in a line of ours


@dataclass(frozen=True)
class Look:
    """How a row is looked at."""

    console: Console
    student: Decoder | None = None
    teacher: Decoder | None = None  # of the row's teacher
    lacks: str = ""  # why there is no decoder
    by: str = "kl"  # of SCALES
    view: str | None = None  # of the teacher, where a trajectory was scored under several
    top: int | None = None  # tokens that are listed; None: TOP where there are no colors
    views: bool = False
    diff: bool = False

    @property
    def has_colors(self) -> bool:
        return self.console.color_system not in (None, "standard") and not self.console.no_color

    def decoder(self, y: str) -> Decoder | None:
        return self.student if y == "y_o" else self.teacher or self.student


def page_of(row: dict[str, Any], look: Look, run: RecordedRows) -> Iterator[Text]:
    yield from _head(row, run)
    for turn in json.loads(row.get("turns") or "[]"):
        yield from _part(look, f"before, by {one_line(str(turn.get('role', '')))}", str(turn.get("content", "")))
    yield from _part(look, "problem", row["problem"])
    for name in ("answer", "reference"):
        if (row.get(name) or "").strip():
            yield from _part(look, name, row[name])
    shaded = False
    for y, title in TRAJECTORIES.items():
        if row.get(y) is not None:
            yield from _verdict(row, y, title)
            found, lines = _response(row, y, look, run)
            shaded |= found
            yield from lines
    if shaded:
        yield Text("")
        yield legend(SCALES[look.by])
    if look.lacks:
        yield Text(look.lacks, style="dim")
    if look.diff:
        yield from _difference(row, look)
    if look.views:
        yield from _views(row, look)


def one_line(text: str, most: int = LONGEST) -> str:
    line = " ".join(visible(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _head(row: dict[str, Any], run: RecordedRows) -> Iterator[Text]:
    named = f"row {row['row']} of {one_line(str(run))}: step {row['step']}, problem {one_line(row['problem_id'])}"
    if row.get("sample_index"):
        named += f", rollout {row['sample_index'] + 1} of it"
    if row.get("source"):
        named += f", source {one_line(row['source'])}"
    if row.get("teacher"):
        named += f", teacher {one_line(row['teacher'])}"
    yield Text(named, style="bold")
    if row.get("fault"):
        yield Text(f"it could not be made or judged: {one_line(row['fault'])}", style="yellow")
    if row.get("train"):
        yield Text(f"trained on {row.get('trajectory')}")
    elif row.get("train") is False:
        yield Text(f"not trained on: {one_line(row.get('dropped_because') or 'no reason is recorded')}")
    elif not run.evaluation:
        yield Text("a row of a corpus, which nothing was trained on yet")


def _verdict(row: dict[str, Any], y: str, title: str) -> Iterator[Text]:
    passed = part(row, y, "passed")
    said = "passed" if passed else "no verdict" if passed is None else "failed"
    style = "bold green" if passed else "bold" if passed is None else "bold red"
    told = []
    if (score := part(row, y, "score")) is not None and score != float(bool(passed)):
        told.append(f"score {score:g}")
    told += [f"{one_line(one['name'])} {one['score']:g}" for one in part(row, y, "parts") or ()]
    if extracted := part(row, y, "extracted"):
        told.append(f"extracted {one_line(extracted)}")
    if detail := part(row, y, "detail"):
        told.append(one_line(detail))
    yield Text("")
    yield Text.assemble((f"-- {title}: ", "bold"), (said, style), "".join(f"; {one}" for one in told))
    ids = part(row, y, "ids")
    facts = [f"{0 if ids is None else len(ids)} tokens", ENDED.get(part(row, y, "finish") or "", "")]
    if (version := part(row, y, "version")) is not None:
        facts.append(f"policy version {version}")
    if engine := part(row, y, "engine"):
        facts.append(f"by {one_line(engine)}")
    yield Text(", ".join(filter(None, facts)), style="dim")
    if feedback := part(row, y, "feedback"):
        yield Text(f"feedback: {one_line(feedback, 1000)}")


def _response(row: dict[str, Any], y: str, look: Look, run: RecordedRows) -> tuple[bool, list[Text]]:
    """Whether any token is shaded, and the lines: numbers of the whole, the text, and the tokens that stand out."""
    ids, decoder = part(row, y, "ids"), look.decoder(y)
    scored = scored_of(row, y, look.view)
    cut = pieces(decoder, ids) if decoder and ids is not None else []
    values = numbers_of(scored, look.by) if scored else None
    lines = [] if run.evaluation else [Text(_found(scored, row, y, look), style="dim")]  # nothing is learned in one
    body = Text()
    shaded = False
    for piece in cut:
        level = level_of(SCALES[look.by], most(values, piece)) if values is not None and look.has_colors else 0
        shaded |= level > 0
        text = visible(piece.text)
        if level and "\n" in text:
            text = text.replace("\n", "↵\n")
        body.append(text, style=STYLES[level] or ("dim" if piece.special else ""))
    lines += barred(look.console, body if cut else Text(visible(part(row, y, "text") or "")))
    if values is not None:
        top = (0 if shaded else TOP) if look.top is None else look.top
        lines += _standing_out(values, cut, scored or {}, look.by, top)
    return shaded, lines


def scored_of(row: dict[str, Any], y: str, view: str | None) -> dict[str, Any] | None:
    """What was found at the tokens of a trajectory: where it trained, else under the first view, or under that one."""
    there = [one for one in row.get("scored") or () if one["trajectory"] == y and view in (None, one["view"])]
    return next((one for one in there if one["trained"]), there[0] if there else None)


def numbers_of(scored: dict[str, Any], by: str) -> np.ndarray | None:
    values = scored.get(SCALES[by].column)
    return None if values is None else np.asarray(values, dtype=np.float64)


def most(values: np.ndarray, piece: Piece) -> float | None:
    """The largest number of the tokens of a piece."""
    of_piece = [float(v) for v in values[piece.first : piece.end] if np.isfinite(v)]
    return max(of_piece, default=None)


def _found(scored: dict[str, Any] | None, row: dict[str, Any], y: str, look: Look) -> str:
    if scored is None:
        return _unscored(row, y, look)
    told = []
    for by, scale in SCALES.items():
        values = numbers_of(scored, by)
        if values is not None and np.isfinite(values).any():
            said = f"{scale.short} {np.nanmean(values[np.isfinite(values)]):.4f}"
            if by == look.by:
                place = int(np.nanargmax(np.where(np.isfinite(values), values, -np.inf)))
                said += f" (most {values[place]:.3f}, at token {place + 1})"
            told.append(said)
    under = f"{scored['view']} view{', which it trained under' if scored['trained'] else ''}"
    ids, values = part(row, y, "ids"), numbers_of(scored, look.by)
    if ids is not None and values is not None and len(ids) != len(values):
        told.append(f"of the first {len(values)} of {len(ids)} tokens")
    return f"mean a token, {under}: {', '.join(told) or 'nothing that is finite'}"


def _unscored(row: dict[str, Any], y: str, look: Look) -> str:
    views = sorted({one["view"] for one in row.get("scored") or () if one["trajectory"] == y})
    if views:
        return f"not scored under the {look.view} view: --view {' or '.join(views)}"
    if row.get("train") and row.get("trajectory") == y:
        return "no numbers for its tokens: a run keeps them with diagnostics.tokens=true, if its loss has a teacher"
    return "no numbers for its tokens: it was not trained on (diagnostics.rows scores both of some rows)"


def _standing_out(
    values: np.ndarray, cut: Sequence[Piece], scored: dict[str, Any], by: str, count: int
) -> Iterator[Text]:
    """The tokens with the largest numbers, for a screen without colors."""
    whole: list[Piece] = list(cut) or [Piece(i, i + 1, "") for i in range(len(values))]
    by_most = sorted(((most(values, piece) or 0.0, piece) for piece in whole), key=lambda one: -one[0])
    rows = [(number, piece) for number, piece in by_most[:count] if number > 0]
    if not rows:
        return
    others = {one: found for one in SCALES if (found := numbers_of(scored, one)) is not None}
    yield Text("  ".join([f"{'token':>7}", *(f"{SCALES[name].short:>8}" for name in others), "text"]), style="dim")
    for _, piece in rows:
        number = f"{piece.first + 1}" if piece.end - piece.first == 1 else f"{piece.first + 1}-{piece.end}"
        found = [most(others[name], piece) for name in others]
        cells = [f"{'-':>8}" if value is None else f"{value:8.3f}" for value in found]
        yield Text("  ".join([f"{number:>7}", *cells, json.dumps(visible(piece.text), ensure_ascii=False)]))


def _difference(row: dict[str, Any], look: Look) -> Iterator[Text]:
    yield Text("")
    yield Text("-- from y_o to y_r", style="bold")
    if row.get("y_o") is None or row.get("y_r") is None:
        yield Text("nothing was refined, so there is nothing to compare")
        return
    texts = [_words(row, y, look.decoder(y)) for y in ("y_o", "y_r")]
    body = Text()
    for kind, text in difference(*texts):
        if kind == "same":
            body.append(visible(text))
        elif look.has_colors:
            body.append(visible(text), style="#000000 on #e08070 strike" if kind == "gone" else "#000000 on #80c080")
        else:
            marks = ("[-", "-]") if kind == "gone" else ("{+", "+}")
            body.append(f"{marks[0]}{visible(text)}{marks[1]}")
    yield from barred(look.console, body)


def _words(row: dict[str, Any], y: str, decoder: Decoder | None) -> list[str]:
    """The words, spaces and signs of a trajectory, without special tokens."""
    ids = part(row, y, "ids")
    text = part(row, y, "text") or ""
    if decoder and ids is not None:
        text = "".join(piece.text for piece in pieces(decoder, ids) if not piece.special)
    return WORDS.findall(text)


def _views(row: dict[str, Any], look: Look) -> Iterator[Text]:
    """The prompts as they were sent, special tokens in « »."""
    shown: dict[str, tuple[Any, Decoder | None]] = {
        "the student's prompt": (row.get("student_prompt_ids"), look.student),
        "the refiner's prompt": (row.get("refine_prompt_ids"), look.teacher or look.student),
        "the teacher's view in the loss": (row.get("teacher_ids"), look.teacher or look.student),
        "the student's view in the loss": (row.get("student_ids"), look.student),
    }
    cut = {"the refiner's prompt": "refine_cut_tokens", "the teacher's view in the loss": "teacher_cut_tokens"}
    before: dict[tuple[int, ...], str] = {}
    for name, (ids, decoder) in shown.items():
        if ids is None:
            continue
        yield Text("")
        title = f"-- {name}: {len(ids)} tokens"
        if lost := row.get(cut.get(name, "")):
            title += f", {lost} more were cut off"
        if same := before.get(tuple(ids)):
            yield Text(f"{title}, the same as {same}", style="bold")
            continue
        before[tuple(ids)] = name
        yield Text(title, style="bold")
        if decoder is None:
            yield Text("it is kept as token ids, which need a tokenizer to be read")
        else:
            yield from barred(look.console, Text(visible(written(decoder, ids))))


def _part(look: Look, title: str, text: str) -> Iterator[Text]:
    yield Text("")
    yield Text(f"-- {title}", style="bold")
    yield from barred(look.console, Text(visible(text)))


def barred(console: Console, text: Text) -> list[Text]:
    """The lines of a text that is not ours, each behind a bar; where there is a terminal, no wider than that."""
    found = []
    for line in text.split("\n", allow_blank=True):
        wrapped = [line]
        if console.is_terminal:
            wrapped = list(line.wrap(console, max(1, console.width - len(BAR)), overflow="fold")) or [Text("")]
        found += [Text.assemble((BAR, "dim"), one) for one in wrapped]
    return found
