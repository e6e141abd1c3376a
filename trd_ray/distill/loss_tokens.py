"""Which tokens of the responses have loss, and with which weight.

    examples of a micro-batch, counts of the update  ->  token_weights()  ->  a factor for each response token
                                                     ->  has_loss()       ->  whether each of them has loss

Shapes: N response tokens of all examples, end to end.

Pure torch.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from trd_ray.distill.batches import Example


def has_loss(examples: Sequence[Example]) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=torch.bool), *map(_has_loss, examples)])


def _has_loss(example: Example) -> torch.Tensor:
    has_N = torch.full((len(example.response_ids),), example.loss_at is None)
    if example.loss_at is not None:
        has_N[torch.from_numpy(example.loss_at).long()] = True
    return has_N


def token_weights(
    examples: Sequence[Example], mean: Literal["tokens", "trajectories"], tokens: int, trajectories: int
) -> torch.Tensor:
    """Factors that make a sum over all ranks the update's mean.

    `tokens` have loss in the whole update, in so many `trajectories`.
    """
    lengths = torch.tensor([len(e.response_ids) for e in examples], dtype=torch.long)
    counts = torch.tensor([e.loss_tokens for e in examples], dtype=torch.float32)
    weight_B = torch.full_like(counts, 1.0 / tokens) if mean == "tokens" else 1.0 / (trajectories * counts)
    return weight_B.repeat_interleave(lengths) * has_loss(examples)
