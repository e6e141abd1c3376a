"""The proof that a sync was right: engine and learner agree on the log-probabilities of the same tokens.

    a few rows of a step -> engine's log-probs (as it sampled, or scored again) --+
                         -> learner's log-probs ----------------------------------+-> sync/gap_mean, sync/gap_max

If older weights sampled the rows and the engines serve the learner's version by now, an engine scores them again. If
the engines do not, or the rows come from a corpus, there is nothing to compare, and no metric.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from trd_ray.engine.actor import Request
from trd_ray.rows import part
from trd_ray.train.policy import Policy

Sequences = list[tuple[list[int], list[int]]]  # (prompt ids, response ids)
Logprobs = list[list[float]]  # log-probabilities of the tokens of each response


def logprob_gap(
    rows: list[dict],
    policy: Policy,
    *,
    count: int,
    learner: Callable[[Sequences], Logprobs],
    engine: Callable[[Sequences], Logprobs],
) -> dict[str, float]:
    """|engine - learner| log-probability of the first `count` rows' sampled tokens, at the learner's version."""
    ids = [part(row, "y_o", "ids") for row in rows]
    probed = [row for row, of_row in zip(rows, ids, strict=True) if of_row is not None and len(of_row)][:count]
    if not probed:
        return {}
    sequences = [(row["student_prompt_ids"], row["y_o"]["ids"]) for row in probed]
    if all(row["y_o"]["version"] == policy.version for row in probed):
        theirs = [row["y_o"]["logprobs"] for row in probed]
    elif policy.served == policy.version:
        theirs = engine(sequences)
    else:
        return {}
    pairs = zip(learner(sequences), theirs, strict=True)
    gaps = np.concatenate([np.abs(np.asarray(ours, float) - np.asarray(others, float)) for ours, others in pairs])
    return {"sync/gap_mean": float(gaps.mean()), "sync/gap_max": float(gaps.max())}


def scored_again(pool: Any, sequences: Sequences, version: int, timeout_s: float) -> Logprobs:
    """The log-probabilities that weights of `version` in a pool of engines give."""
    asked = [Request(prompt_ids=[*prompt, *response], seed=0, prompt_logprobs=True) for prompt, response in sequences]
    answers = ray.get(pool.generate.remote(asked, version), timeout=timeout_s)
    return [a.prompt_logprobs[-len(response) :] for [a], (_, response) in zip(answers, sequences, strict=True)]
