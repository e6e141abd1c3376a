"""A model's weights, read by one rank and given to all of them, so that no host holds a copy for each of its ranks.

    rank 0:  folder -> the whole model on the CPU ----+
    others:  config -> the same model on "meta" ------+-> Spread -> one group of modules at a time, whole on each rank's
                                                                    device, of which fully_shard then keeps a shard

- Rank 0 alone reads the weights. Its host memory holds the whole model until the last group is sharded.
- Every other rank holds its shards, and one group whole. On GPUs that group lies on the GPU, as it did before.
- The others wait for rank 0's reading in a process group of their own, with the deadline of the start. What rank 0
  could not load, all ranks refuse in the same words.
- Bits travel as they are: what a rank keeps is what it would have read itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trd_ray.errors import UserError


def is_read_once(config: Any) -> bool:
    """Whether rank 0 reads the model for all. Quantized files have other tensors than the config alone builds."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return several and not getattr(config, "quantization_config", None)


def read_by_rank_0(read: Callable[[], Any], build: Callable[[], Any], path: str, wait_s: float) -> Any:
    """What `read` returns on rank 0, and what `build` makes without weights on the others, once rank 0 has read.

    Raises on every rank if rank 0 could not read: there its own error, elsewhere a UserError if that is one.
    """
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_s))
    model = error = None
    if dist.get_rank() == 0:
        try:
            model = read()
        except Exception as e:
            error = e
    outcome: list[Any] = [None if error is None else (isinstance(error, UserError), f"{error}")]
    dist.broadcast_object_list(outcome, src=0, group=group)
    dist.destroy_process_group(group)
    if error is not None:
        raise error
    if outcome[0]:
        refused, said = outcome[0]
        raise UserError(said) if refused else RuntimeError(f"rank 0 could not load {path}: {said}")
    return model if model is not None else build()


@dataclass
class _Slot:
    """Where one tensor of the model belongs: once, or several times if modules share it."""

    name: str  # the first of its names
    shape: tuple[int, ...]
    dtype: torch.dtype
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # a module's parameters or buffers, its key
    given: bool = False


class Spread:
    """Gives every rank the tensors of rank 0's model, those of one module at a call. Collective.

    The ranks must make the same calls. A tensor that several modules share is given once, and shared again.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.device = device
        self.reads = dist.get_rank() == 0
        slots: dict[int, _Slot] = {}  # by the id of the tensor; no tensor is kept alive here
        self.slots: dict[tuple[int, str], _Slot] = {}  # by the id of what holds it, and its key there
        for prefix, module in model.named_modules():
            for held, name, tensor in _held(module):
                made = _Slot(f"{prefix}.{name}", tuple(tensor.shape), tensor.dtype)
                slot = self.slots[id(held), name] = slots.setdefault(id(tensor), made)
                slot.places.append((held, name))
        self._agree(list(slots.values()))

    def _agree(self, mine: list[_Slot]) -> None:
        """Take types from rank 0, since files may say another one than the config. Refuse another model than its."""
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, {slot.name: (slot.shape, slot.dtype) for slot in mine})
        first = everywhere[0]
        for rank, other in enumerate(everywhere):
            differ = [n for n in sorted(first.keys() | other.keys()) if _shape(n, first) != _shape(n, other)]
            if differ:
                raise UserError(
                    f"rank {rank} of the learner builds another model than rank 0: {len(differ)} tensors differ, such "
                    f"as {differ[0]}: have the same versions and the same model files on every node"
                )
        for slot in mine:
            slot.dtype = first[slot.name][1]

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> None:
        """Put what the module holds, and was not given yet, on the device of every rank."""
        for part in module.modules():
            for held, name, tensor in _held(part):
                slot = self.slots[id(held), name]
                if slot.given:
                    continue
                slot.given = True
                if self.reads:
                    whole = tensor.detach().to(self.device).contiguous()
                else:
                    whole = torch.empty(slot.shape, dtype=slot.dtype, device=self.device)
                dist.broadcast(whole, src=0)
                if isinstance(tensor, nn.Parameter):
                    whole = nn.Parameter(whole, requires_grad=tensor.requires_grad)
                for holder, key in slot.places:
                    holder[key] = whole


def _held(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """What a module itself holds: (the dict in which it does, the key there, the tensor)."""
    for held in (module._parameters, module._buffers):
        for name, tensor in list(held.items()):
            if tensor is not None:
                yield held, name, tensor


def _shape(name: str, tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[int, ...] | None:
    return tensors[name][0] if name in tensors else None
