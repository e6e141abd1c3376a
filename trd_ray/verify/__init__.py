"""Verifiers: a response and its problem enter, a verdict leaves.

    text, {"answer": ...}  ->  verifier(recipe.verify)  ->  Verdict(passed, score, extracted, detail, seconds)

A verifier never raises on what a model wrote: empty, endless and hostile text all end in a verdict, by the deadline.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from trd_ray.config import Verify

EMPTY = "empty"  # the detail of a verdict on a response without text, whatever the task


@dataclass(frozen=True)
class Verdict:
    passed: bool
    score: float  # 0 to 1; for mathematics 1 if passed, else 0
    extracted: str  # the answer that was compared, "" when the text holds none; always valid UTF-8
    detail: str  # why it did not pass, "" when there is nothing to say
    seconds: float


class Verifier(Protocol):
    """Callable from any thread. `problem` is a row with the columns of `trd_ray.rows.PROBLEM`."""

    def __call__(self, text: str | None, problem: dict) -> Verdict: ...

    def close(self) -> None:
        """End the processes behind it; the next call starts them again."""
        ...


def verifier(config: Verify) -> Verifier:
    """The verifier of a recipe. One process makes one and keeps it, so call this inside the task that verifies."""
    return _kept(config.task, config.timeout_s)


@lru_cache(maxsize=8)
def _kept(task: str, timeout_s: float) -> Verifier:
    from trd_ray.verify.math import MathVerifier

    return {"math": MathVerifier}[task](timeout_s)
