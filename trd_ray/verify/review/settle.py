"""A verdict that waits for a person is kept as JSON, and becomes the verdict once the person has spoken.

    Verdict, awaited  ->  written()  ->  JSON in a stored row  ->  read_back()  ->  the same Verdict
    the same Verdict, what was given since  ->  settled()  ->  the verdict now

Nothing is verified again: of several verifiers that are weighted, what the others gave was kept.
"""

import json
from dataclasses import asdict
from typing import Any

from trd_ray.config import VerifyConfig
from trd_ray.verify.chosen import weighed
from trd_ray.verify.review.review_verifier import Given, ReviewVerifier
from trd_ray.verify.verdict import Awaited, Verdict


def settled(verdict: Verdict, config: VerifyConfig, given: Given, text: str, problem_id: str) -> Verdict:
    """The verdict with what persons have said by now; as it is where it waits for nobody."""
    if not (awaited := verdict.awaited):
        return verdict
    if awaited.beside:
        now = {name: settled(one, config, given, text, problem_id) for name, one in awaited.beside.items()}
        return weighed(config, now)
    return ReviewVerifier(given, awaited.pass_at)(text, {"problem_id": problem_id})


def written(verdict: Verdict) -> str | None:
    """A verdict that waits, as JSON, so that it can be settled later. None for any other."""
    return json.dumps(asdict(verdict)) if verdict.awaited else None


def read_back(text: str) -> Verdict:
    """The verdict of `written`."""
    return _verdict(json.loads(text))


def _verdict(tree: dict[str, Any]) -> Verdict:
    awaited = tree.pop("awaited")
    if awaited is None:
        return Verdict(**tree)
    beside = {name: _verdict(one) for name, one in awaited["beside"].items()}
    return Verdict(**tree, awaited=Awaited(awaited["pass_at"], beside))
