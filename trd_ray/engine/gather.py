"""The learner's weights as vLLM's sender asks for them: gathered from all ranks, one complete tensor after the other.

    rank 0..n: meet, has any failed? -> gather (collective) -> rank 0: vLLM's sender hands the tensor on
                       |                                    -> the others: drop it
                       +-- yes: every rank stops at this tensor

A rank that fails between two gathers says so before the next, so none is left alone in one. One that fails in a gather,
or dies, ends the wait of the others with an error of their group.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource


class OtherRankFailed(RuntimeError):
    """The gather was given up because another rank has failed, which says itself why."""


class LearnerWeights(WeightSource):
    """The student's parameters or their moving average, under their checkpoint names; gathered as they are sent.

    All ranks iterate in step: before each gather `any_failed(here)` tells every rank whether one has failed. With
    `in_step` it does so after each gather too, for a sender whose ranks wait for each other to hand a tensor on.
    """

    def __init__(
        self, learner: Any, who: str, dtype: torch.dtype, any_failed: Callable[[bool], bool], in_step: bool = False
    ):
        self.learner, self.who, self.dtype, self.any_failed, self.in_step = learner, who, dtype, any_failed, in_step
        self.tensors: Any = None  # being gathered
        self.failure: Exception | None = None  # of this rank's gather
        self.over = True  # the ranks meet at no further tensor of this push

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self.dtype, shape) for name, shape in self.learner.shapes()]

    def largest_bytes(self) -> int:
        return max(math.prod(shape) for _, shape in self.learner.shapes()) * self.dtype.itemsize

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.tensors = self.learner.weights(self.who, self.dtype)
        while True:
            self._meet()
            named = None
            try:
                named = _gathered(self.tensors)
            except Exception as e:
                self.failure = e
            if self.in_step or self.failure:
                self._meet()  # raises the failure, and OtherRankFailed on the other ranks
            if named is None:
                self.over = True
                return
            yield named

    def begin(self) -> None:
        self.over, self.failure = False, None

    def end(self) -> None:
        """No other rank waits for this one in a gather any longer: what it did not get to, nobody gathers."""
        try:
            self.failure = self.failure or OtherRankFailed()
            with contextlib.suppress(type(self.failure)):
                self._meet()
        finally:
            if self.tensors is not None:
                self.tensors.close()  # at once: the moving average must not stay in the student's place
                self.tensors = None

    def _meet(self) -> None:
        if not self.over and self.any_failed(self.failure is not None):
            self.over = True
            raise self.failure or OtherRankFailed("another rank could not go on")


def _gathered(tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[str, torch.Tensor] | None:
    """The next tensor, complete, or None at the end.

    vLLM's packed sender asks for it on a stream of its own, on which a broadcast to the engines may be under way. An
    all-gather of the learner's group there deadlocks with several ranks: the ranks that do not send run the same
    gathers on their default streams and are ahead, and two communicators wait for each other's blocks on the GPU (seen
    in TRL #6798 and verl #6002). So it runs on the default stream, and has ended before the tensor is handed on.
    """
    if not torch.cuda.is_initialized():
        return next(tensors, None)
    caller = torch.cuda.current_stream()
    with torch.cuda.stream(torch.cuda.default_stream()):
        named = next(tensors, None)
        torch.cuda.current_stream().synchronize()
    if named is not None and named[1].is_cuda:
        named[1].record_stream(caller)  # else its memory could be given away while the caller's stream still reads it
    return named
