"""A count of numbers that are not finite: one NaN in a weight reaches every weight with the next update."""

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor


@torch.no_grad()
def not_finite(tensors: Iterable[torch.Tensor]) -> int:
    """How many numbers of the tensors are NaN or infinite. Of a sharded tensor, this rank's shard counts."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    counts = [(~torch.isfinite(t)).sum() for t in local]  # all are started before the first is waited for
    return sum(int(count) for count in counts)
