"""How short a step can be at best, from its slowest rollout and its training.

    S, R: seconds in which the step's slowest rollout was sampled and refined     T: seconds of its training
    k: stream.max_staleness

    sync.in_flight   a step takes at least
    keep             max(T, (S + R + T) / (k + 1))
    drain            max(T, S, (S + R + T) / (k + 1))

Why each of them holds:

- T: the learner trains one step at a time.
- (S + R + T) / (k + 1): the oldest version that may sample a row is k steps older than the one that trains on it. From
  that version to the end of the row's training k + 1 steps pass, and the row needs S + R + T of them. On policy (k = 0)
  that is S + R + T, the largest of all.
- S: with `drain` new weights wait for the requests under way, the slowest among them. With `keep` they do not, nor with
  sync.lora=adapter. The last k steps of a run are the exception: no row waits for their weights.

Verification, weight transfer and scheduling come on top. The slowest rollout is the one with the largest sum of
sampling and refining.

Pure.
"""

import math
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple


class StepSeconds(NamedTuple):
    sample: float  # S
    refine: float  # R, 0 where nothing is refined
    train: float  # T

    @property
    def whole(self) -> float:
        return sum(self)


def limits(s: StepSeconds, staleness: int, in_flight: str) -> dict[str, float]:
    """What a step cannot be shorter than: seconds by what sets them, "train", "drain" (if it drains) and "row"."""
    drained = {"drain": s.sample} if in_flight == "drain" else {}
    return {"train": s.train} | drained | {"row": s.whole / (staleness + 1)}


def bound(s: StepSeconds, staleness: int, in_flight: str) -> float:
    """The seconds that a step takes at least."""
    return max(limits(s, staleness, in_flight).values())


def binding(s: StepSeconds, staleness: int, in_flight: str) -> str:
    """Which of the `limits` is the bound; of equal ones "row", then "train"."""
    found = limits(s, staleness, in_flight)
    return max(("row", "train", "drain"), key=lambda name: found.get(name, 0.0))


def slowest(facts: Iterable[dict]) -> tuple[float, float] | None:
    """(S, R) of the facts of a step's rows (see record.ledger); None if no row says how long its sampling took."""
    times = [(f["y_o_seconds"], f["y_r_seconds"] or 0.0) for f in facts if f.get("y_o_seconds") is not None]
    return max(times, key=sum, default=None)


def steady(metrics: Iterable[dict], staleness: int, steps: int | None = None) -> list[dict]:
    """The lines of metrics.jsonl whose steps' rollouts were sampled while the run went from step to step.

    Those of the first k + 1 steps, and of as many after an evaluation, were under way before: neither the start nor an
    evaluation counts as a step's time. While the last k of all `steps` go on, nothing is sampled any more: they are
    left out where others remain.
    """
    found = []
    before = 0  # steps since the run paused
    for line in metrics:
        if before > staleness:
            found.append(line)
        before = 0 if line.get("evaluation/avg") is not None else before + 1
    last = math.inf if steps is None else steps - staleness
    return [line for line in found if line["step"] <= last] or found


def of_run(facts: Iterable[dict], metrics: Iterable[dict]) -> StepSeconds | None:
    """Medians of S, of R and of T over the steps in `metrics`. None if none of them was sampled and trained."""
    by_step: dict[int, list[dict]] = {}
    for fact in facts:
        by_step.setdefault(fact["step"], []).append(fact)
    steps = [
        (*times, train)
        for line in metrics
        if (train := line.get("seconds/train")) is not None and (times := slowest(by_step.get(line["step"], [])))
    ]
    return StepSeconds(*map(median, zip(*steps, strict=True))) if steps else None
