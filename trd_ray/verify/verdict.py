"""What a verifier says about a response, and what every verifier is.

A verdict is about the response. Where the process that judges is killed each time that it is asked, there is none: such
a verdict says UNJUDGED and why. Nobody trains on that response, and it counts against data.max_bad_rows.
"""

from dataclasses import dataclass, field
from typing import Protocol

from trd_ray.config.verify_keys import IDS as IDS

EMPTY = "empty"  # the detail of a verdict on a response without text, whatever the task
# `IDS` is the key of a problem with the token ids of its responses, by their texts, if anywhere.
PROMPT = (
    "student_prompt"  # the key of a problem at which its verifier finds the prompt as the engine saw it, if anywhere
)
UNJUDGED = "not judged"  # how the detail of a verdict begins that says nothing about the response


@dataclass(frozen=True)
class Verdict:
    passed: bool
    score: float  # for mathematics and code 1 if passed, else 0; a user's function may give any finite number
    extracted: str  # the answer that was compared or the program that ran, "" without one; always valid UTF-8
    detail: str  # why it did not pass, "" when there is nothing to say
    seconds: float
    feedback: str = ""  # a bounded text on what failed, for the refine prompt; math: without the expected answer
    parts: dict[str, float] = field(default_factory=dict)  # where several verifiers were asked: what each gave

    @property
    def judged(self) -> bool:
        """Whether it says anything about the response; else what judges was killed or cannot be started."""
        return not self.detail.startswith(UNJUDGED)


def unjudged(why: str, seconds: float = 0.0) -> Verdict:
    """It does not pass, and must not be taken for a wrong answer either."""
    return Verdict(False, 0.0, "", f"{UNJUDGED} ({why})", seconds)


class Verifier(Protocol):
    """A function that any thread may call. `problem` is a row with the columns of `trd_ray.rows.PROBLEM`."""

    def __call__(self, text: str | None, problem: dict) -> Verdict: ...

    def close(self) -> None:
        """End the processes behind it; the next call starts them again."""
        ...
