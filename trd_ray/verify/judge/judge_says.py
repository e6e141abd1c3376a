"""The verdict in what a judge wrote: its last line.

    "The sum is right.\nVerdict: pass"  ->  read_verdict()  ->  JudgeSaid(1.0, "The sum is right.")

The last line that is not empty must be `Verdict: pass`, `Verdict: fail`, or `Verdict: ` and a number from 0 to 1, in
any case and with Markdown's marks around it. Nothing else that the judge wrote is read, so a verdict that it quotes
from a response counts for nothing. Nor is a text that was cut: its last line is no end.
"""

import re
from dataclasses import dataclass

MAX_REASON_CHARS = 1000
NOTHING = "it wrote nothing"
ENDED = "stop"  # as an engine says that a text has ended by itself

_MARKS = r"[\s*_#>`~\"'.]*"
_VERDICT = re.compile(
    rf"{_MARKS}verdict{_MARKS}:{_MARKS}(?:(?P<word>pass|fail)(?:ed)?|(?P<number>\d+(?:\.\d+)?|\.\d+)){_MARKS}",
    re.IGNORECASE,
)
_THOUGHT = "</think>"


@dataclass(frozen=True)
class JudgeSaid:
    """What a judge's text comes to."""

    score: float | None  # None: it holds no verdict
    reasons: str = ""  # what it wrote before, bounded
    why: str = ""  # there is no verdict


def read_verdict(text: str, finish: str = ENDED) -> JudgeSaid:
    """`finish` is how the engine says that the text ended."""
    if finish != ENDED:
        return JudgeSaid(None, why="its text was cut, as at judge.max_response_tokens")
    before, _, last = text.rstrip().rpartition("\n")
    match = _VERDICT.fullmatch(last)
    if not match:
        return JudgeSaid(
            None, why="its last line is no `Verdict: pass` or `Verdict: fail`" if last else "it wrote nothing"
        )
    word, number = match["word"], match["number"]
    score = float(word.lower() == "pass") if word else float(number)
    if score > 1:
        return JudgeSaid(None, why=f"its score {number} is not between 0 and 1")
    return JudgeSaid(score, _bounded(before.rpartition(_THOUGHT)[2].strip()))


def _bounded(reasons: str) -> str:
    return reasons if len(reasons) <= MAX_REASON_CHARS else f"{reasons[:MAX_REASON_CHARS]}…"
