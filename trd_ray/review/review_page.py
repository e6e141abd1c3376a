"""A response as pages for a person: its problem, what is expected, and the text to judge.

    Queued, width  ->  lines_of()  ->  lines, each as wide as the screen at most

What a model and the data wrote is hostile. Characters that move the cursor, or hide or reorder text, become U+FFFD, and
each line of such a text begins with a bar, so that none can pass for a line of ours.
"""

import unicodedata
from collections.abc import Iterator

from trd_ray.record.markdown import visible
from trd_ray.verify.review.review_queue import Queued

BAR = "| "
LEAST_WIDTH = 20


def lines_of(one: Queued, width: int = 80) -> list[str]:
    """The empty parts are left out, apart from the response."""
    lines: list[str] = []
    for turn in one.turns:
        lines += _part(f"before, by {turn.get('role', '')}", str(turn.get("content", "")), width)
    lines += _part("problem", one.problem, width)
    if one.answer.strip():
        lines += _part("expected answer", one.answer, width)
    if one.reference.strip():
        lines += _part("reference", one.reference, width)
    return lines + _part("RESPONSE", one.response, width)


def told_of(one: Queued) -> str:
    """Which response it is, in a few words."""
    first = one.asked_by[0]
    which = "attempt" if first.trajectory == "y_o" else f"refinement {first.candidate} of {first.candidates}"
    more = f" and {len(one.asked_by) - 1} more rows" if len(one.asked_by) > 1 else ""
    return f"{which}, row {first.row}{more}, problem {in_one_line(one.problem_id)}"


def in_one_line(text: str, most: int = 80) -> str:
    line = " ".join(visible(text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _part(title: str, text: str, width: int) -> list[str]:
    room = max(LEAST_WIDTH, width) - len(BAR)
    return [
        f"-- {in_one_line(title)} ",
        *(BAR + piece for line in visible(text).split("\n") for piece in _cut(line, room)),
    ]


def _cut(line: str, room: int) -> Iterator[str]:
    """Pieces of a line that fit. A character that takes no place counts as one, or a line of them had no end."""
    start = taken = 0
    for i, character in enumerate(line):
        wide = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if taken + wide > room:
            yield line[start:i]
            start, taken = i, 0
        taken += wide
    yield line[start:]
