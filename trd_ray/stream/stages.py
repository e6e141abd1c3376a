"""The stages of the graph: thin async clients of the engine pools, and verifier tasks.

    Sample: problem -> y_o          verify_rollouts: y_o -> verdict
    Refine: y_o -> n candidates     select_refined:  candidates -> verdicts -> y_r

Each takes and returns a table of `rows.IN_STREAM`; one table is one block of rows of one step. The classes hold no
state but their tokenizers, so a stage that Ray restarts can go on with any block.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from trd_ray.config import EvaluationConfig, Recipe, SamplingConfig
from trd_ray.engine.actor import Generation, Request
from trd_ray.engine.client import Client
from trd_ray.rows import IN_STREAM, WITH_CANDIDATES, to_table
from trd_ray.verify import Verdict, verifier


@dataclass
class StageSpec:
    """What a stage needs to start; plain data."""

    recipe: Recipe
    student_path: str  # resolved, as is teacher_path; the tokenizers are loaded from them
    teacher_path: str
    sampler: Any  # handles of the pools
    refiner: Any
    first_version: int  # the version of the weights that the run starts with
    max_staleness: int | str


def min_version(step: int, max_staleness: int | str, first_version: int) -> int:
    """The oldest policy version that may sample a row of `step`."""
    if max_staleness == "never":
        return first_version
    return max(first_version, step - int(max_staleness))


def request(sampling: SamplingConfig | EvaluationConfig, prompt_ids: list[int], seed: int, n: int = 1) -> Request:
    return Request(
        prompt_ids=prompt_ids,
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.response_tokens,
        n=n,
    )


def _views(spec: StageSpec) -> Any:
    from trd_ray.views import load_views

    return load_views(spec.recipe, spec.student_path, spec.teacher_path)


class Sample:
    def __init__(self, spec: StageSpec):
        self.spec = spec
        self.views = _views(spec)
        self.sampler = Client(spec.sampler)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        recipe = self.spec.recipe
        rows = block.to_pylist()
        for row in rows:
            row["student_prompt_ids"] = self.views.student(row["problem"])
        version = max(min_version(row["step"], self.spec.max_staleness, self.spec.first_version) for row in rows)
        asked = [request(recipe.sampler, row["student_prompt_ids"], row["seed"]) for row in rows]
        answers = await asyncio.gather(*(self.sampler.generate(one, version) for one in asked))
        for row, [generation] in zip(rows, answers, strict=True):
            record(row, "y_o", generation)
        yield to_table(rows, IN_STREAM)


class Refine:
    def __init__(self, spec: StageSpec):
        self.spec = spec
        self.views = _views(spec)
        self.refiner = Client(spec.refiner)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        refiner = self.spec.recipe.refiner
        rows = block.to_pylist()
        for row in rows:
            y_o = row["y_o"]
            view = self.views.refine(row["problem"], row["reference"], y_o["ids"], y_o["passed"], y_o["feedback"])
            row["refine_prompt_ids"] = view.ids
            row["refine_cut_tokens"] = view.cut_tokens
        # The seed differs from y_o's: the same seed would couple the two samples.
        asked = [request(refiner, row["refine_prompt_ids"], row["seed"] ^ 1, refiner.n) for row in rows]
        answers = await asyncio.gather(*(self.refiner.generate(one) for one in asked))
        for row, generations in zip(rows, answers, strict=True):
            row["candidates"] = [_trajectory(g) for g in generations]
        yield to_table(rows, WITH_CANDIDATES)


def verify_rollouts(block: pa.Table, recipe: Recipe) -> pa.Table:
    rows = block.to_pylist()
    verify = verifier(recipe.verify)
    for row in rows:
        start = time.time()
        record_verdict(row, "y_o", verify(row["y_o"]["text"], row), start)
    return to_table(rows, IN_STREAM)


def select_refined(block: pa.Table, recipe: Recipe) -> pa.Table:
    """Verify every candidate and keep one as y_r, by `refiner.select`; if none passes, keep the first."""
    rows = block.to_pylist()
    verify = verifier(recipe.verify)
    for row in rows:
        start = time.time()
        candidates = row["candidates"]
        verdicts = [verify(c["text"], row) for c in candidates]
        chosen = select(candidates, verdicts, recipe.refiner.select)
        row["y_r"] = candidates[chosen]
        record_verdict(row, "y_r", verdicts[chosen], start)
        row["y_r"]["verify_seconds"] = time.time() - start  # for all candidates
        row["refine_candidates"] = len(candidates)
        row["refine_candidates_passed"] = sum(v.passed for v in verdicts)
    return to_table(rows)


def select(candidates: list[dict], verdicts: list[Verdict], rule: str) -> int:
    """Index of the refinement to keep: by `rule` the first, the first that passes or the shortest that passes."""
    passed = [i for i, verdict in enumerate(verdicts) if verdict.passed]
    if rule == "first" or not passed:
        return 0
    return passed[0] if rule == "first_passed" else min(passed, key=lambda i: len(candidates[i]["ids"]))


def record(row: dict[str, Any], y: str, generation: Generation) -> None:
    row[y] = _trajectory(generation)


def record_verdict(row: dict[str, Any], y: str, verdict: Verdict, start_s: float) -> None:
    judged = {name: getattr(verdict, name) for name in ("passed", "score", "extracted", "detail", "feedback")}
    row[y] |= judged | {"verify_start_s": start_s, "verify_seconds": verdict.seconds}


def _trajectory(generation: Generation) -> dict[str, Any]:
    """A generation as a `rows.TRAJECTORY` without a verdict."""
    names = ("ids", "logprobs", "text", "finish", "version", "engine", "start_s", "seconds")
    return {name: getattr(generation, name) for name in names}
