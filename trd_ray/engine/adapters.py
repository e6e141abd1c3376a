"""Adapters from the learner to the engines of its pools, beside the requests under way: nothing pauses for them.

    learner --send--> one object in Ray's store --load_adapter--> every engine, beside the one that it serves
                                                --serve_adapter--> served from here on; the old one goes after its
                                                                   last request (loaded.py)

What each side does where one fails:

- The learner's ranks gather together to the end. Rank 0 alone talks to the pools, and all learn how that went.
- An engine that could not load it goes on with the old adapter, and so do all others: the update is given up.
- An engine that dies is restarted and holds the base model alone. The learner is told, and sends the adapter again.
  The engines that serve it by then keep it, and hold no second copy (loaded.py).
- Between the first engine that serves the new version and the last, the pool's version is the old one. A request may
  then be answered by a newer version than it asked for, and its generation says so.

At shutdown the engines are stopped in the middle of it. Nothing needs to be undone.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from trd_ray.engine.deaths import HEALTH_TIMEOUT_S
from trd_ray.engine.fleet import Fleet, Life, State
from trd_ray.engine.update import EngineFailed, call_each, given_up

if TYPE_CHECKING:
    import torch


class AdapterSender:
    """The learner's side. Collective over its ranks; rank 0 keeps what is gathered, and sends it."""

    def __init__(self, learner: Any, dtype: "torch.dtype", rank: int):
        """`learner` gives `adapter_tensors(dtype)` and `packed_adapter(tensors)`."""
        self.learner, self.dtype, self.rank = learner, dtype, rank

    def send(self, pools: Any, version: int, on_rank_0: Callable[[Callable[[], Any]], Any]) -> None:
        """Give the adapter to all engines as `version`.

        `pools` is a PoolsClient. `on_rank_0` makes a call there and tells every rank how it went.
        """
        tensors: dict[str, torch.Tensor] = {}
        problem: Exception | None = None
        for name, tensor in self.learner.adapter_tensors(self.dtype):
            try:
                if self.rank == 0 and problem is None:
                    tensors[name] = tensor.cpu().contiguous()
            except Exception as e:  # the others still gather the rest with this rank
                problem = e

        def load() -> None:
            if problem:
                raise problem
            # One object for all engines. It is in the store as long as this reference is.
            pools.load_adapter(ray.put(self.learner.packed_adapter(tensors)))

        on_rank_0(load)
        on_rank_0(lambda: pools.serve_adapter(version))


class AdapterUpdate:
    """The pool's side: one adapter, and the engines that were up when it came. Those that serve go on serving."""

    def __init__(self, fleet: Fleet):
        self.fleet = fleet
        self.engines = [(life, life.handle) for life in fleet.those(State.STALE, State.SERVING)]
        self.over = False
        for life in fleet.those(State.STALE):
            life.move(State.UPDATING)

    async def load(self, files: list) -> None:
        """`files` holds a reference, which Ray then does not resolve on the way."""
        await self._all("load_adapter", files)

    async def serve(self, version: int) -> None:
        """Every engine serves `version` when this returns, and the gate lets its requests in."""
        await self._all("serve_adapter", version)
        self._check("serve_adapter")
        self.over = True
        self.fleet.serve(version, beside=[life for life, _ in self._alive()])

    async def give_up(self) -> None:
        self.close()
        if not self.fleet.failure:
            with contextlib.suppress(EngineFailed):
                await call_each(self.fleet, self._alive(), "give_up_adapter", timeout_s=HEALTH_TIMEOUT_S)

    def close(self) -> None:
        """No engine takes part any longer; each is what it was."""
        self.over = True
        for life, _ in self._alive():
            if life.state is State.UPDATING:
                life.move(State.STALE)

    def _alive(self) -> list[tuple[Life, ActorHandle]]:
        return [(life, handle) for life, handle in self.engines if life.handle is handle]

    async def _all(self, method: str, argument: Any) -> None:
        self._check(method)
        await call_each(self.fleet, self.engines, method, arguments=[(argument,)] * len(self.engines))

    def _check(self, method: str) -> None:
        if self.over:
            raise given_up(self.fleet, method)
