"""Verifiers: a response and its problem enter, a verdict leaves.

    text, problem  ->  Chosen: the function that verify.function names  ->  Verdict
                       by default code for a problem with tests, reasoning_gym for an item of it, else math

A verifier never raises on what a model wrote. Empty, endless and hostile text all end in a verdict by the deadline. It
raises Lost where this machine does not start what judges, BadRow where a problem's own data names no verifier or its
tests cannot be read, and UserError where a user's function cannot be had.
"""

from functools import lru_cache

from trd_ray.config import VerifyConfig
from trd_ray.verify.chosen import Chosen, limit_s, needs_engines
from trd_ray.verify.verdict import (
    AWAITS_REVIEW,
    EMPTY,
    IDS,
    PROMPT,
    UNJUDGED,
    Awaited,
    Verdict,
    Verifier,
    missed_deadline,
    unjudged,
)

__all__ = [
    "AWAITS_REVIEW", "EMPTY", "IDS", "PROMPT", "UNJUDGED", "Awaited", "Chosen", "Verdict", "Verifier", "limit_s",
    "missed_deadline", "needs_engines", "unjudged", "verifier", "verifier_of_json",
]  # fmt: skip


def verifier(config: VerifyConfig) -> Chosen:
    """The verifier of a recipe. One process makes one and keeps it, so call this inside the task that verifies."""
    return verifier_of_json(config.model_dump_json())


@lru_cache(maxsize=8)
def verifier_of_json(config: str) -> Chosen:
    """The same of a VerifyConfig as JSON, in which form it is quickest to send to a task."""
    return Chosen(VerifyConfig.model_validate_json(config))
