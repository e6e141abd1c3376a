"""What a verifier says about a response, and what every verifier is."""

from dataclasses import dataclass
from typing import Protocol

EMPTY = "empty"  # the detail of a verdict on a response without text, whatever the task


@dataclass(frozen=True)
class Verdict:
    passed: bool
    score: float  # 0 to 1; for mathematics 1 if passed, else 0
    extracted: str  # the answer that was compared or the program that ran, "" without one; always valid UTF-8
    detail: str  # why it did not pass, "" when there is nothing to say
    seconds: float
    feedback: str = ""  # a bounded text on what failed, for the refine prompt; math: without the expected answer


class Verifier(Protocol):
    """A function that any thread may call. `problem` is a row with the columns of `trd_ray.rows.PROBLEM`."""

    def __call__(self, text: str | None, problem: dict) -> Verdict: ...

    def close(self) -> None:
        """End the processes behind it; the next call starts them again."""
        ...
