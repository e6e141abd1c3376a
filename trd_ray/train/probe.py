"""The proof that a sync was right: engine and learner agree on the log-probabilities of the same tokens.

    a few rows of a step -> engine's log-probs (as it sampled, or scored again) --+
                         -> learner's log-probs ----------------------------------+-> sync/gap_mean, sync/gap_max

If older weights sampled the rows and the engines serve the learner's version by now, an engine scores them again. If
the engines do not, or the rows come from a corpus, there is nothing to compare, and no metric.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray.engine.actor import Request
from trd_ray.engine.client import Client
from trd_ray.rows import dicts, part
from trd_ray.train.policy import Policy

Sequences = list[tuple[np.ndarray, np.ndarray]]  # (prompt ids, response ids), int32
Logprobs = Sequence[Sequence[float] | np.ndarray]  # log-probabilities of the tokens of each response


def logprob_gap(
    rows: pa.Table,
    policy: Policy,
    *,
    count: int,
    learner: Callable[[Sequences], Logprobs],
    engine: Callable[[Sequences], Logprobs],
) -> dict[str, float]:
    """|engine - learner| log-probability of the first `count` rows' sampled tokens, at the learner's version.

    `rows` are of rows.ROW.
    """
    found = dicts(rows, ("student_prompt_ids", "y_o.ids", "y_o.logprobs", "y_o.version"))
    probed = [row | row["y_o"] for row in found if _tokens(row)][:count]
    if not probed:
        return {}
    sequences = [(row["student_prompt_ids"], row["ids"]) for row in probed]
    if all(row["version"] == policy.version for row in probed):
        theirs: Logprobs = [row["logprobs"] for row in probed]
    elif policy.served == policy.version:
        theirs = engine(sequences)
    else:
        return {}
    gaps = np.concatenate(
        [
            np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
            for a, b in zip(learner(sequences), theirs, strict=True)
        ]
    )
    return {"sync/gap_mean": float(gaps.mean()), "sync/gap_max": float(gaps.max())}


def _tokens(row: dict) -> int:
    ids = part(row, "y_o", "ids")
    return 0 if ids is None else len(ids)


def scored_again(pool: Any, sequences: Sequences, version: int, timeout_s: float) -> Logprobs:
    """The log-probabilities that weights of `version` in a pool of engines give, or TimeoutError."""
    client = Client(pool)
    try:
        asked = [
            client.submit(Request(np.concatenate([prompt, response]), seed=0, prompt_logprobs=True), version)
            for prompt, response in sequences
        ]
        late = wait(asked, timeout_s).not_done
        if late:
            raise TimeoutError(
                f"the engines did not score {len(late)} of {len(asked)} rollouts again within {timeout_s:.0f} s "
                "(sampler.request_timeout_s)"
            )
        answers = [future.result() for future in asked]
    finally:
        client.close()
    return [a.prompt_logprobs[-len(response) :] for [a], (_, response) in zip(answers, sequences, strict=True)]
