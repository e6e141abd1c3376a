"""Many responses, judged by one verifier in this process.

verifier, (text, problem) ...  ->  judge_all()  ->  the verdict on each, in order, and when it began
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trd_ray.errors import BadRow
from trd_ray.verify.verdict import Verdict, Verifier, unjudged

Judged = tuple[float, Verdict]  # Unix time at which the verification began


def judge_all(verify: Verifier, pairs: Sequence[tuple[str, dict[str, Any]]]) -> list[Judged]:
    """As many calls at once as the verifier gains from (verify.concurrency). A row's own fault is a verdict too."""
    at_once = min(getattr(verify, "at_once", 1), len(pairs))  # not every verifier gains from company
    if at_once <= 1:
        return [_one(verify, *pair) for pair in pairs]
    with ThreadPoolExecutor(at_once, thread_name_prefix="verify") as pool:
        return list(pool.map(lambda pair: _one(verify, *pair), pairs))


def _one(verify: Verifier, text: str, problem: dict[str, Any]) -> Judged:
    start_s = time.time()
    try:
        return start_s, verify(text, problem)
    except BadRow as e:
        return start_s, unjudged(str(e))
