"""What a verifier says about a response, and what every verifier is.

A verdict is about the response. Where the process that judges is killed each time that it is asked, there is none: such
a verdict says UNJUDGED and why. Nobody trains on that response, and it counts against data.max_bad_rows.

Where a person judges (verify.function: review) there is none yet: such a verdict has what is `awaited`. It says
UNJUDGED too, but it counts against nothing.
"""

import re
from dataclasses import dataclass, field
from typing import Protocol

from trd_ray.config.verify_keys import IDS as IDS

EMPTY = "empty"  # the detail of a verdict on a response without text, whatever the task
# `IDS` is the key of a problem with the token ids of its responses, by their texts, if anywhere.
PROMPT = (
    "student_prompt"  # the key of a problem at which its verifier finds the prompt as the engine saw it, if anywhere
)
UNJUDGED = "not judged"  # how the detail of a verdict begins that says nothing about the response
# Of a test case or all of them, of a comparison, of a function of the user's own.
_LATE = re.compile(
    r"\btime limit (\([\d.]|of all cases)|deadline passed|the function took more than|no answer by the deadline"
)
AWAITS_REVIEW = f"{UNJUDGED} (waits for review)"


@dataclass(frozen=True)
class Awaited:
    """What is known of a response while a person's verdict on it is waited for."""

    pass_at: float = 1.0  # where the person gives a score alone, it passes with this or more
    beside: dict[str, "Verdict"] = field(default_factory=dict)  # of several that are weighted: all, by their names


@dataclass(frozen=True)
class Verdict:
    passed: bool
    score: float  # for mathematics and code 1 if passed, else 0; a user's function may give any finite number
    extracted: str  # the answer that was compared or the program that ran, "" without one; always valid UTF-8
    detail: str  # why it did not pass, "" when there is nothing to say
    seconds: float
    feedback: str = ""  # a bounded text on what failed, for the refine prompt; math: without the expected answer
    parts: dict[str, float] = field(default_factory=dict)  # where several verifiers were asked: what each gave
    awaited: Awaited | None = None  # a person's verdict is waited for

    @property
    def judged(self) -> bool:
        """Whether it says anything about the response; else what judges was killed or cannot be started."""
        return not self.detail.startswith(UNJUDGED)


def missed_deadline(detail: str) -> bool:
    """Whether a verdict's detail says that a program, a comparison or a function took too long."""
    return bool(_LATE.search(detail))


def unjudged(why: str, seconds: float = 0.0) -> Verdict:
    """It does not pass, and must not be taken for a wrong answer either."""
    return Verdict(False, 0.0, "", f"{UNJUDGED} ({why})", seconds)


def waiting(awaited: Awaited | None = None, seconds: float = 0.0) -> Verdict:
    """A person will say whether it passes."""
    return Verdict(False, 0.0, "", AWAITS_REVIEW, seconds, awaited=awaited or Awaited())


class Verifier(Protocol):
    """A function that any thread may call. `problem` is a row with the columns of `trd_ray.rows.PROBLEM`."""

    def __call__(self, text: str | None, problem: dict) -> Verdict: ...

    def close(self) -> None:
        """End the processes behind it; the next call starts them again."""
        ...
