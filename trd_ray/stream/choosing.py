"""Which of several refinements becomes y_r.

    verified refinements -> Candidates -> to_score() -> a request each to the sampler's engines -> mean_logprob()
                                       -> choose(): its place
                                       -> still_asked(): those that a person must judge before

refiner.select names the rule:

    first            the first, whatever its verdict
    first_passed     the first that passes
    shortest_passed  the shortest that passes
    best_score       the highest score of the verifier; of equal ones that pass the shortest
    nearest          of those that pass, the one that the student finds most likely

If none passes, all rules but best_score take the first. A refinement counts as not there

- if it could not be judged. If none could, the row has a fault.
- with refiner.max_edited_share, if it strays further from y_o. If all stray, the rule chooses among all, and
  examples.py drops the row.

**Most likely** is the mean log-probability of a token, at temperature 1, the end token included. The sum would be the
likelihood of the whole text, but each token costs some of it, also a token of the student's own: the sum prefers the
shortest candidate almost whatever the student thinks of it, which shortest_passed does without a model. The loss too
is a mean over tokens. A text can raise its mean by repeating itself, but it must pass.

best_score breaks ties by length only among those that pass: the shortest of several failures is often no answer at all.

Where a person judges (verify.function: review) a refinement has no verdict at first. Nobody is asked about more of
them than the rule needs: one for `first`, all for `best_score`, and for the others one after another until one passes.
`nearest` scores them all, since no engine runs any more when the verdicts come.

Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trd_ray.engine.actor import Generation, Request


@dataclass
class RefineCandidate:
    """What a refinement is chosen by."""

    tokens: int
    passed: bool | None  # None: a person's verdict is waited for
    score: float
    judged: bool = True  # else `passed` and `score` say nothing about it
    edited_share: float | None = None  # against y_o, where refiner.max_edited_share asks for it
    scored: bool = False  # the student's engines were asked for its likelihood
    logprob: float | None = None  # mean a token under the student; None also where an engine refused to tell


def choose(candidates: Sequence[RefineCandidate], rule: str, max_edited_share: float | None = None) -> int:
    near = _near(candidates, max_edited_share)
    passed = [i for i in near if candidates[i].passed]
    if rule == "best_score":
        return max(near, key=lambda i: _by_score(candidates[i]))  # of equal ones max takes the first
    if rule == "first" or not passed:
        return near[0]
    if rule == "first_passed":
        return passed[0]
    if rule == "nearest":
        return max(passed, key=lambda i: (_number(candidates[i].logprob), -candidates[i].tokens))
    return min(passed, key=lambda i: candidates[i].tokens)


def to_score(candidates: Sequence[RefineCandidate], rule: str, max_edited_share: float | None = None) -> list[int]:
    """The places of those whose likelihood decides, or may. A single one needs none, and none of a dropped row."""
    if rule != "nearest":
        return []
    there = [i for i, one in enumerate(candidates) if not strays(one.edited_share, max_edited_share)]
    passed = [i for i in there if candidates[i].passed is not False]
    return passed if len(passed) > 1 else []


def preferred(candidates: Sequence[RefineCandidate], rule: str, max_edited_share: float | None = None) -> list[int]:
    """The places of those that the rule looks at, the one first that it would take if all passed."""
    near = _near(candidates, max_edited_share)
    if rule == "first":
        return near[:1]
    if rule == "shortest_passed":
        return sorted(near, key=lambda i: candidates[i].tokens)
    if rule == "nearest":
        return sorted(near, key=lambda i: (-_number(candidates[i].logprob), candidates[i].tokens))
    return near


def still_asked(candidates: Sequence[RefineCandidate], rule: str, max_edited_share: float | None = None) -> list[int]:
    """The places of those whose verdict is waited for and may decide, in the order in which they are preferred."""
    order = preferred(candidates, rule, max_edited_share)
    if rule != "best_score":
        first_passed = next((n for n, i in enumerate(order) if candidates[i].passed), len(order))
        order = order[:first_passed]
    return [i for i in order if candidates[i].passed is None]


def _near(candidates: Sequence[RefineCandidate], max_edited_share: float | None) -> list[int]:
    """The places of those that may be chosen: judged ones, or whose verdict is waited for, that do not stray."""
    awaits = [one.judged or one.passed is None for one in candidates]
    there = [i for i, may_be in enumerate(awaits) if may_be] or list(range(len(candidates)))
    return [i for i in there if not strays(candidates[i].edited_share, max_edited_share)] or there


def scoring(
    prompt_ids: Sequence[int] | np.ndarray, response_ids: Sequence[int] | np.ndarray, adapter: bool = True
) -> Request:
    """The request for the likelihood of a response. vLLM samples a token besides, so the context must hold one more."""
    ids = np.concatenate([np.asarray(prompt_ids, np.int32), np.asarray(response_ids, np.int32)])
    # No `prefix`: vLLM reads no prefix cache for a prompt that it scores, or it would have no logits to score by.
    return Request(ids, seed=0, prompt_logprobs=True, adapter=adapter)


def mean_logprob(answer: Generation, tokens: int) -> float | None:
    """Of the response that ends the scored prompt; None where there is no finite number."""
    if answer.refused or not tokens:
        return None
    mean = float(np.mean(answer.prompt_logprobs[-tokens:], dtype=np.float64))
    return mean if math.isfinite(mean) else None


def strays(edited_share: float | None, limit: float | None) -> bool:
    return limit is not None and edited_share is not None and edited_share > limit


def _by_score(candidate: RefineCandidate) -> tuple[float, bool, int]:
    return _number(candidate.score), bool(candidate.passed), -candidate.tokens if candidate.passed else 0


def _number(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
