"""When a pool's engines have their GPUs, where the learner has the same ones in turn (placement=timeshare).

    AWAKE     the engines have their memory, and the gate may be open
    SETTLING  the gate is shut; what is in flight is answered, and engines that start come up
    ASLEEP    the GPUs are the learner's: the engines have given their memory up, and none starts
    WAKING    the GPUs are the engines' again: weights may come, and engines that died start; the gate is still shut

    AWAKE --rest()--> SETTLING -> ASLEEP --wake(weights)--> WAKING --an update--> WAKING --wake(kv_cache)--> AWAKE

The learner may be lost in a sync, and needs its GPUs to start again: so WAKING --rest()--> SETTLING too. A pool that
gets no weights is woken at once. A recipe in which nobody takes turns has AWAKE pools only.

What becomes of engines meanwhile:

- One that dies while the pool is ASLEEP waits in STARTING, without a process, until the pool wakes.
- One that cannot rest or wake in time is killed, which frees its memory as well, and counts as dead.
- One whose weights went (`drop`) is STALE. An update that is given up after that starts it again, whatever was sent.
- The pool's process may die: the next one reads the phase from its keeper (keeper.py). Where the keeper has died too,
  the pool is taken for ASLEEP, and the run wakes it when it sees that.

Who waits for what: SETTLING for the requests in flight, for an update that is given up and for engines that start, as
long as these may take; then `rest` raises TimeoutError, and the pool is what it was. Each engine has NAP_S to rest and
to wake.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum, auto
from typing import Any

from trd_ray.engine.actor import PoolSpec, reason, result
from trd_ray.engine.deaths import HEALTH_TIMEOUT_S
from trd_ray.engine.fleet import Fleet
from trd_ray.engine.life import UP, State
from trd_ray.engine.resting import KV_CACHE
from trd_ray.engine.update import find_dead

NAP_S = 120.0


class Phase(StrEnum):
    AWAKE = auto()
    SETTLING = auto()
    ASLEEP = auto()
    WAKING = auto()


class InPhases:
    """A part of `Pool`, which has these."""

    spec: PoolSpec
    fleet: Fleet
    update: Any
    coming: Any
    routing: Any
    phase = Phase.AWAKE
    known: Sequence[tuple[Any, Any]] = ()  # engines of an earlier process of the pool, with their handles

    @property
    def dropped(self) -> bool:
        """Whether engines may have no weights."""
        return self.phase is not Phase.AWAKE and self.spec.rests == "drop"

    async def rest(self) -> None:
        """The GPUs are the learner's when this returns. Where a pool has its own, nothing happens."""
        if self.spec.rests is None:
            return
        before = self.phase
        if before is not Phase.ASLEEP:
            self.phase = Phase.SETTLING
            await self.fleet.notify()
            await find_dead(self.fleet)  # it answers nothing of what it holds
            try:
                await self.fleet.wait_at_most(
                    self.spec.request_timeout_s + self.spec.start_timeout_s + HEALTH_TIMEOUT_S,
                    "requests to be answered and engines to start, before they rest",
                    self._is_still,
                )
            except TimeoutError:
                self.phase = before
                await self.fleet.notify()
                raise
        self.phase = Phase.ASLEEP
        self.routing.forget()  # no prefix is in a cache any longer
        if self.spec.rests == "drop":
            for life in self.fleet.those(State.SERVING):
                life.move(State.STALE)
        await self.fleet.notify()
        await self._taken_over()
        await self._each("rest", self.spec.rests)

    async def wake(self, tags: Sequence[str]) -> None:
        """The engines have these parts of their memory when this returns: "weights", then "kv_cache"."""
        if self.phase is Phase.AWAKE:
            return  # a call that is made again
        if self.phase is Phase.SETTLING:
            raise RuntimeError(f"pool {self.spec.name} was told to wake before it was at rest")
        self.phase = Phase.WAKING
        await self.fleet.notify()
        await self._taken_over()
        await self._each("wake", list(tags))
        if KV_CACHE in tags:
            self.phase = Phase.AWAKE
            await self.fleet.notify()

    def may_start(self) -> bool:
        return self.phase is not Phase.ASLEEP

    def _is_still(self) -> bool:
        busy = any(life.outstanding for life in self.fleet.those(*UP))
        return not (busy or self.update or self.coming or self.fleet.those(State.STARTING))

    async def _taken_over(self) -> None:
        """Wait until the engines of an earlier process have said what they hold, or start again."""
        await self.fleet.wait_at_most(
            self.spec.start_timeout_s,
            "its engines to answer after its process has died",
            lambda: (
                not any(
                    handle and life.handle is handle and life.state is State.STARTING for life, handle in self.known
                )
            ),
        )

    async def _each(self, method: str, argument: Any) -> None:
        """Call all engines that are up. One that fails is killed, so that its memory is free in any case."""
        engines = [(life, life.handle) for life in self.fleet.those(*UP)]
        calls = [asyncio.wait_for(result(getattr(handle, method).remote(argument)), NAP_S) for _, handle in engines]
        for (life, handle), outcome in zip(engines, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(outcome, BaseException):
                late = isinstance(outcome, TimeoutError)
                why = f"TimeoutError: it did not {method} within {NAP_S:.0f} s" if late else reason(outcome)
                await self.fleet.on_death(life, handle, why)
