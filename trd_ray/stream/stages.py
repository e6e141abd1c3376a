"""What happens to a row on its way: what is asked of an engine, and how an answer and a verdict are written into it.

    row -> request -> Generation -> record -> Verdict -> record_verdict      for y_o
           -> n refinements -> verdicts -> one is chosen (choosing.py) -> record_refined
                                        -> a person judges (reviewed.py) -> record_candidates

flow.py brings it together. Everything here is pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trd_ray.config import Each, EvaluationConfig, Recipe, SamplingConfig, VerifyConfig
from trd_ray.engine.actor import Generation, Request
from trd_ray.errors import BadRow
from trd_ray.problems.order import Order
from trd_ray.rows import parts_of
from trd_ray.stream.choosing import RefineCandidate
from trd_ray.stream.judging import JudgeAt
from trd_ray.verify import AWAITS_REVIEW, IDS, PROMPT, UNJUDGED, Verdict
from trd_ray.verify.review.settle import written
from trd_ray.views import Ids, Views


@dataclass
class StageSpec:
    """What a stage needs to start; plain data."""

    recipe: Recipe
    student_path: str  # resolved, as is teacher_path; the tokenizers are loaded from them
    teacher_path: Each[str]
    sampler: Any  # handles of the pools
    refiner: Each[Any]
    order: Order  # of the run
    problems: Any  # a reference to the table that `problem_number` counts in
    shelf: Any  # the actor that has the tests; None: there are none
    vocabulary: int | None  # ids that the heads of student and teacher share
    first_version: int  # the version of the weights that the run starts with
    max_staleness: int | str
    trains: bool  # else the rows are for a corpus, whose reader makes the examples
    first_refine_version: Each[int] = 0  # as `first_version`, of the refiner; a frozen one stays at 0
    judge: JudgeAt | None = None  # where a verifier is the judge
    actors: int = 1  # among which a step's rows are shared out


def min_version(step: int, max_staleness: int | str, first_version: int) -> int:
    """The oldest policy version that may sample a row of `step`."""
    if max_staleness == "never":
        return first_version
    return max(first_version, step - int(max_staleness))


def request(
    sampling: SamplingConfig | EvaluationConfig,
    prompt_ids: Ids,
    seed: int,
    n: int = 1,
    adapter: bool = True,
    prefix: int | None = None,
) -> Request:
    """`prefix` is equal for requests that begin alike, as those about one problem do."""
    return Request(
        prompt_ids=np.asarray(prompt_ids, np.int32),
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.response_tokens,
        n=n,
        adapter=adapter,
        prefix=prefix,
    )


def record(row: dict[str, Any], y: str, generation: Generation) -> None:
    row[y] = _trajectory(generation)


def record_verdict(row: dict[str, Any], y: str, verdict: Verdict, start_s: float) -> None:
    row[y] |= verdict_fields(verdict) | {"verify_start_s": start_s, "verify_seconds": verdict.seconds}
    if verdict.awaited:  # of y_o: those of refinements stand in their candidates
        row["review_awaited"] = written(verdict)


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """The fields of a trajectory; one whose verdict is waited for has neither passed nor failed."""
    fields = {name: getattr(verdict, name) for name in ("passed", "score", "extracted", "detail", "feedback")}
    fields["parts"] = parts_of(verdict.parts)
    return fields | {"passed": None, "score": None} if verdict.awaited else fields


def record_refined(
    row: dict[str, Any],
    refinements: list[Generation],
    judged: list[tuple[float, Verdict]],
    candidates: list[RefineCandidate],
    chosen: int,
) -> None:
    """Keep the chosen one of the verified refinements as y_r, and what all of them cost."""
    verdicts = [verdict for _, verdict in judged]
    record(row, "y_r", refinements[chosen])
    record_verdict(row, "y_r", verdicts[chosen], judged[0][0])
    row["y_r"]["verify_seconds"] = sum(verdict.seconds for verdict in verdicts)  # for all candidates
    _record_costs(row, verdicts, candidates)
    row["refine_edited_share"] = candidates[chosen].edited_share
    row["refine_student_logprob"] = candidates[chosen].logprob


def record_candidates(
    row: dict[str, Any],
    refinements: list[Generation],
    judged: list[tuple[float, Verdict]],
    candidates: list[RefineCandidate],
) -> None:
    """Keep all refinements, since one can be chosen only when a person has judged them."""
    row["review_candidates"] = [
        _trajectory(refinement)
        | verdict_fields(verdict)
        | {"verify_start_s": start_s, "verify_seconds": verdict.seconds}
        | {"edited_share": one.edited_share, "student_logprob": one.logprob, "awaited": written(verdict)}
        for refinement, (start_s, verdict), one in zip(refinements, judged, candidates, strict=True)
    ]
    _record_costs(row, [verdict for _, verdict in judged], candidates)


def _record_costs(row: dict[str, Any], verdicts: list[Verdict], candidates: list[RefineCandidate]) -> None:
    row["refine_candidates"] = len(candidates)
    row["refine_candidates_passed"] = sum(v.passed for v in verdicts)
    kept = row.get("refine_kept_tokens")  # of each of them, which the teacher has read with the rest of y_o
    row["refine_tokens"] = sum(c.tokens - (kept or 0) for c in candidates)
    read = 0 if kept is None else len(row["y_o"]["ids"])
    row["refine_scored_tokens"] = sum(c.tokens for c in candidates if c.scored) + read or None


def with_prompt(problem: dict[str, Any], verify: VerifyConfig, views: Views, prompt_ids: Ids) -> dict[str, Any]:
    """The problem for its verifier: a function of the user's may judge the prompt as the engine saw it, with y_o."""
    return problem | {PROMPT: views.text(prompt_ids)} if verify.has_own else problem


def with_ids(problem: dict[str, Any], verify: VerifyConfig, ids: Mapping[str, Ids]) -> dict[str, Any]:
    """The problem for its verifier, with the token ids of the responses that it is asked about, by their texts."""
    return problem | {IDS: dict(ids)} if ids and verify.may_take_ids else problem


def require_judged(row: dict[str, Any], y: str) -> None:
    """Raise BadRow for a verdict that says nothing about the response, and that no person will give either."""
    if row[y]["detail"].startswith(UNJUDGED) and row[y]["detail"] != AWAITS_REVIEW:
        raise BadRow(f"{y}: {row[y]['detail']}")


def require_taken(generations: list[Generation], y: str) -> None:
    """Raise BadRow where the engine refused the request."""
    if refused := next((g.refused for g in generations if g.refused), ""):
        raise BadRow(f"{y}: the engine refused the request ({refused})")


def _trajectory(generation: Generation) -> dict[str, Any]:
    """A generation as a `rows.TRAJECTORY` without a verdict."""
    names = ("ids", "logprobs", "text", "finish", "version", "engine", "start_s", "seconds")
    return {name: getattr(generation, name) for name in names}
