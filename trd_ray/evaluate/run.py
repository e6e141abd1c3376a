"""Sample every held-out problem k times through a pool, verify, and score.

    problems x k -> sampler pool -> verifier tasks -> rows -> Score

Requests go out in blocks so that verification overlaps sampling; the pool admits them all at once.
"""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from trd_ray.config import Recipe
from trd_ray.data import seed_of_row
from trd_ray.engine.actor import Generation
from trd_ray.rows import to_table
from trd_ray.stream.stages import record, request, verify_rollouts
from trd_ray.views import Views

BLOCK_ROWS = 200
POLL_S = 0.5


def evaluation_rows(
    recipe: Recipe,
    problems: pa.Table,
    views: Views,
    sampler: ActorHandle,
    *,
    step: int,
    min_version: int,
    while_waiting: Callable[[], object],
) -> list[dict[str, Any]]:
    """`evaluation.samples` verified rollouts of each problem, as rows with the y_o columns."""
    e = recipe.evaluation
    rows = []
    for problem in problems.to_pylist():
        prompt_ids = views.evaluation(problem["problem"])
        for sample in range(e.samples):
            number = len(rows)
            order = {
                "row": number,
                "step": step,
                "epoch": 0,
                "sample_index": sample,
                "seed": seed_of_row(recipe.seed, number),
            }
            rows.append(problem | order | {"student_prompt_ids": prompt_ids})
    blocks = [rows[i : i + BLOCK_ROWS] for i in range(0, len(rows), BLOCK_ROWS)]
    sampling: dict[Any, list[dict[str, Any]]] = {
        sampler.generate.remote(
            [request(e, row["student_prompt_ids"], row["seed"]) for row in block], min_version
        ): block
        for block in blocks
    }
    verify = ray.remote(verify_rollouts).options(num_cpus=recipe.verify.cpus, max_retries=0)
    verifying: list[Any] = []
    deadline = time.monotonic() + recipe.sampler.request_timeout_s
    while sampling:
        done, _ = ray.wait(list(sampling), num_returns=1, timeout=POLL_S)
        for ref in done:
            block = sampling.pop(ref)
            answers: list[list[Generation]] = ray.get(ref)
            for row, [generation] in zip(block, answers, strict=True):
                record(row, "y_o", generation)
            verifying.append(verify.remote(to_table(block), recipe))
            deadline = time.monotonic() + recipe.sampler.request_timeout_s
        while_waiting()
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the evaluation waited {recipe.sampler.request_timeout_s:.0f} s (sampler.request_timeout_s) "
                "for rollouts"
            )
    verified: list[dict[str, Any]] = []
    for ref in verifying:
        # Every answer has a deadline of its own, so a block has their sum.
        limit = (recipe.verify.timeout_s + 5) * BLOCK_ROWS
        table: Any = ray.get(ref, timeout=limit)
        verified += table.to_pylist()
    return verified
