"""What persons have said of responses: a file of JSON lines, to which anybody may append.

    {"key": "...", "passed": true}                                a verdict
    {"key": "...", "score": 0.5, "feedback": "...", "reviewer": "ann"}   with partial credit
    {"key": "...", "passed": null}                                takes back what was said

    review/verdicts.jsonl  ->  read_given()  ->  GivenVerdicts: by key, and the lines that say nothing
    a verdict  ->  append_given()  ->  a line of the file, on the disk when it returns

The last line of a key counts. A line is appended in one write, so several programs may append to one file. One that is
no verdict, as the half line that a crash leaves, is passed over and named.
"""

import errno
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_FEEDBACK_CHARS = 2000
MAX_REVIEWER_CHARS = 80
NAMED_LINES = 5


@dataclass(frozen=True)
class PersonsVerdict:
    """What a person said of a response. Neither passed nor a score: what was said before is taken back."""

    passed: bool | None = None
    score: float | None = None
    feedback: str = ""
    reviewer: str = ""

    @property
    def withdrawn(self) -> bool:
        return self.passed is None and self.score is None


@dataclass
class GivenVerdicts:
    by_key: dict[str, PersonsVerdict] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)  # the number of a line, from 1 -> why it is no verdict

    def complaint(self, place: Path) -> str:
        """A sentence about the lines that say nothing; "" where there are none."""
        if not self.bad:
            return ""
        numbers = list(self.bad)
        shown = ", ".join(map(str, numbers[:NAMED_LINES]))
        more = f" and {len(numbers) - NAMED_LINES} more" if len(numbers) > NAMED_LINES else ""
        of = "line" if len(numbers) == 1 else "lines"
        return (
            f"{of} {shown}{more} of {place} give no verdict and are passed over (line {numbers[0]} "
            f'{self.bad[numbers[0]]}): a verdict is a line such as {{"key": "...", "passed": true}}'
        )


def key_of(problem_id: str, text: str) -> str:
    """The key of a response: equal for equal texts on one problem, in any run."""
    digest = hashlib.sha256()
    for part in (problem_id, text):
        encoded = part.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.hexdigest()[:32]


def read_given(place: Path) -> GivenVerdicts:
    """Every verdict of the file; none where there is no file. Raises OSError where it cannot be read."""
    found = GivenVerdicts()
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return found
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                key, said = _said(line)
                found.by_key[key] = said
            except (ValueError, RecursionError) as e:
                found.bad[number] = str(e) if type(e) is ValueError else "is no JSON"
    return found


def append_given(place: Path, key: str, said: PersonsVerdict, **also: Any) -> None:
    """Put a verdict on the disk; `also` is kept beside it.

    Raises OSError. What a full disk then left of the line is passed over, and the next line begins after it.
    """
    line: dict[str, Any] = {"key": key, "passed": said.passed}
    line |= {"score": said.score} if said.score is not None else {}
    line |= {"feedback": said.feedback} if said.feedback else {}
    line |= {"reviewer": said.reviewer} if said.reviewer else {}
    file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        half = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # of a line that a crash or an editor left
        text = ("\n" if half else "") + json.dumps(line | also) + "\n"
        if os.write(file, text.encode()) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
        os.fsync(file)
    finally:
        os.close(file)


def _said(line: bytes) -> tuple[str, PersonsVerdict]:
    """Raises ValueError, which says what a line that is JSON lacks."""
    try:
        tree = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("is no JSON") from None
    if not isinstance(tree, dict):
        raise ValueError("is no JSON object")
    key, passed, score = tree.get("key"), tree.get("passed"), tree.get("score")
    if not isinstance(key, str) or not key:
        raise ValueError("has no key")
    if passed is not None and not isinstance(passed, bool):
        raise ValueError("says passed, but neither true nor false")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score)):
        raise ValueError("has a score that is no finite number")
    if score is None and "passed" not in tree:
        raise ValueError("says neither passed nor a score")
    feedback = _text(tree.get("feedback"), MAX_FEEDBACK_CHARS)
    reviewer = _text(tree.get("reviewer"), MAX_REVIEWER_CHARS)
    return key, PersonsVerdict(passed, None if score is None else float(score), feedback, reviewer)


def _finite(score: int | float) -> bool:
    try:
        return math.isfinite(float(score))
    except OverflowError:
        return False


def _text(value: Any, most: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("has a feedback or a reviewer that is no text")
    return value.encode("utf-8", "replace").decode()[:most]
