"""`trd review RUN`: the responses that wait for a person, one at a time; each verdict is on the disk at once.

    RUN  ->  Desk  ->  a response on the screen  ->  a key  ->  the verdict, and the next response

It can be ended at any time and goes on with what is left. `trd refine`, repeated, brings the verdicts into the corpus.
"""

import math
import shutil
import sys
from pathlib import Path

from trd_ray.errors import UserError
from trd_ray.review.desk import Desk, alone, name_of_user
from trd_ray.review.keypress import KEYS, MORE, QUIT, AtTerminal, InLines, Keystroke, Reviewer
from trd_ray.review.review_page import in_one_line, lines_of, told_of
from trd_ray.verify.review.given_verdicts import MAX_FEEDBACK_CHARS, MAX_REVIEWER_CHARS
from trd_ray.verify.review.review_queue import Queued, queue_place

LEAST_LINES = 8
LINES_OF_A_PIPE = 60
AROUND = 3  # lines of ours on a page


def review(run: str, reviewer: str | None = None) -> int:
    """Show and ask until nothing is left or the reviewer has enough; returns 0. Raises UserError."""
    place = _place(run)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character is no reason to end
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore
    name = in_one_line(reviewer or name_of_user(), MAX_REVIEWER_CHARS)
    with alone(place):
        desk = Desk(place, name)
        if desk.complaint:
            print(in_one_line(desk.complaint, 1000), file=sys.stderr)
        who: Reviewer = AtTerminal() if sys.stdin.isatty() and sys.stdout.isatty() else InLines(sys.stdin)
        _Sitting(desk, who).sit()
        return 0


class _Sitting:
    """What one reviewer sees and says, until the end."""

    def __init__(self, desk: Desk, who: Reviewer):
        self.desk = desk
        self.who = who

    def sit(self) -> None:
        again = None  # what was taken back, which comes next
        while one := again or self.desk.next():
            stroke, comment = self._asked(one)
            again = None
            if stroke.key == QUIT:
                break
            if stroke.key == "b":
                again = self.desk.take_back()
                print("taken back" if again else "nothing was said yet that could be taken back")
                again = again or one
            elif stroke.key == "n":
                self.desk.skip(one)
            else:
                self._keep(one, stroke, comment)
        print(self._end(), flush=True)

    def _asked(self, one: Queued) -> tuple[Keystroke, str]:
        """The stroke that ends the look at this response, and the comment that was made on the way."""
        width, height = shutil.get_terminal_size((80, 24)) if sys.stdout.isatty() else (80, LINES_OF_A_PIPE + AROUND)
        lines, size = lines_of(one, width), max(LEAST_LINES, height - AROUND)
        top, comment = 0, ""
        left = len(self.desk.left)
        print(f"\n== {told_of(one)}; {left} left ==")
        self._show(lines, top, size)
        while True:
            stroke = self.who.keystroke()
            if stroke.key == MORE:
                top = top + size if top + size < len(lines) else 0
                self._show(lines, top, size)
            elif stroke.key == "c":
                comment = stroke.text.strip()[:MAX_FEEDBACK_CHARS]
                print("the comment goes with the verdict" if comment else "no comment", flush=True)
            elif stroke.key == "s" and _score(stroke.text) is None:
                print("a score is a number, such as s 0.5", flush=True)
            elif stroke.key in ("p", "f", "s", "n", "b", QUIT):
                return stroke, comment
            else:
                print(KEYS, flush=True)

    def _show(self, lines: list[str], top: int, size: int) -> None:
        print("\n".join(lines[top : top + size]))
        pages = math.ceil(len(lines) / size)
        place = f" (page {top // size + 1} of {pages})" if pages > 1 else ""
        print(f"{KEYS}{place}", flush=True)

    def _keep(self, one: Queued, stroke: Keystroke, comment: str) -> None:
        said = stroke.text
        score = None
        if stroke.key == "s":
            score = _score(said)
            said = said.partition(" ")[2]
        feedback = (comment or said.strip())[:MAX_FEEDBACK_CHARS].encode("utf-8", "replace").decode()
        self.desk.give(one, {"p": True, "f": False}.get(stroke.key), score, feedback)
        print(
            f"kept: {'passes' if stroke.key == 'p' else 'fails' if stroke.key == 'f' else f'score {score:g}'}",
            flush=True,
        )

    def _end(self) -> str:
        self.desk.look()
        left = len(self.desk.left)
        if not left:
            return f"everything is judged: the `trd refine` that made {self.desk.run} reads it, by the same command"
        return f"{left} left; `trd review {self.desk.run}` goes on, and the same `trd refine` reads what is judged"


def _place(run: str) -> Path:
    """The run directory that is named, as a path or below runs/."""
    for place in (Path(run).expanduser(), Path("runs") / run):
        if queue_place(place).is_file():
            return place.absolute()
    raise UserError(
        f"{run} has no responses to review (review/queue.jsonl): name the directory of a run of `trd refine` whose "
        "recipe has verify.function=review"
    )


def _score(text: str) -> float | None:
    try:
        score = float(text.split()[0])
    except (ValueError, IndexError):
        return None
    return score if math.isfinite(score) else None
