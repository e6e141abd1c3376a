"""The learner whose gradients are made up: a real rank in a real Ray Train group, with a real optimizer and model.

    a step's examples -> a number of their rows and ids, summed over the ranks -> the same gradient everywhere -> AdamW

So forward and backward cost nothing, and the weights still tell which rows were trained, in which order and how often:
the number of each row is a fraction of 2**20, whose sums are exact, however the rows are shared out over the ranks.
"""

import time
import zlib
from typing import Any

STEP_S = 0.15  # so that a strike can meet a step
FRACTION = 2**20


def number_of(row: int, response_ids: Any) -> float:
    """From -1 to 1, by the row and its ids."""
    digest = zlib.crc32(f"{row}:{','.join(map(str, response_ids))}".encode())
    return (digest % (2 * FRACTION + 1) - FRACTION) / FRACTION


def work(config: dict[str, Any]) -> None:
    """What `trd_ray.distill.trainer.work` does, with a learner whose gradients are made up."""
    from trd_ray.distill import learned_metrics, learner, trainer

    learner.Learner = _made_up(learner.Learner, learned_metrics.METRICS)
    trainer.work(config)


def _made_up(base: Any, metrics: tuple[str, ...]) -> Any:
    class MadeUpLearner(base):
        def step(self, updates: list[list[list[Any]]], teachers: Any = None) -> dict[str, float]:
            import torch
            import torch.distributed as dist

            time.sleep(STEP_S)
            lr, norms, trained = self.schedule.get_last_lr()[0], [], 0.0
            for micro in updates:
                examples = [e for batch in micro for e in batch]
                numbers = [number_of(e.row, e.response_ids) for e in examples]
                tokens = sum(len(e.response_ids) for e in examples)
                sums = torch.tensor([sum(numbers), float(len(numbers)), float(tokens)], dtype=torch.float64)
                dist.all_reduce(sums)
                total, rows, tokens = sums.tolist()
                for parameter in self.trained.values():
                    parameter.grad = torch.full_like(parameter, total / max(1.0, rows))
                norms.append(self._update())
                trained += tokens
            for _ in range(self.recipe.learner.updates_per_step - len(updates)):
                self.schedule.step()
            measured = dict.fromkeys((name for name in metrics if name != "weights_not_finite"), 0.0)
            norm = sum(norms) / max(1, len(norms))
            measured |= {"loss": 1.0, "grad_norm": norm, "lr": lr, "updates": float(len(norms))}
            return measured | {"trained_tokens": trained}

        def logprobs(self, sequences: list[tuple[list[int], list[int]]]) -> list[list[float]]:
            return [[-1.0] * len(response) for _, response in sequences]

    return MadeUpLearner
