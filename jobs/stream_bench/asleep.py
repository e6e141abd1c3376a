"""The learner whose arithmetic is a sleep: a real rank in a real Ray Train group, with a real, tiny model.

Mailbox, shards, weight sync and checkpoints are the real ones. A step sleeps, and its loss is made up.
"""

import time
from typing import Any

LR = 1e-6


def work(seconds: float, config: dict[str, Any]) -> None:
    """What `trd_ray.distill.trainer.work` does, with a learner that needs `seconds` for a step."""
    from trd_ray.distill import learned_metrics, learner, trainer

    learner.Learner = _asleep(learner.Learner, learned_metrics.METRICS, seconds)
    trainer.work(config)


def _asleep(base: Any, metrics: tuple[str, ...], seconds: float) -> Any:
    class SleepingLearner(base):
        def step(self, updates: list[list[list[Any]]], teachers: Any = None) -> dict[str, float]:
            time.sleep(seconds)
            examples = [e for micro in updates for batch in micro for e in batch]
            measured = dict.fromkeys((name for name in metrics if name != "weights_not_finite"), 0.0)
            tokens = float(sum(len(e.response_ids) for e in examples))
            return measured | {"loss": 1.0, "lr": LR, "updates": 1.0, "trained_tokens": tokens}

        def logprobs(self, sequences: list[tuple[list[int], list[int]]]) -> list[list[float]]:
            return [[-1.0] * len(response) for _, response in sequences]

    return SleepingLearner
