"""Pools brought to other numbers of engines, while a run goes on.

    wanted numbers -> bring(): engines for which there is room start at once
                             | engines that leave answer what they hold, stop, and leave their places to the others
                   -> sentences about what could not be

Places are the room's to give: see `EngineRoom`. One change is made at a time. What waits here waits in the pools, which
have the deadlines (engine/pool.py), or in the room, which waits no longer once another change is `queued`.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from trd_ray.engine.actor import reason
from trd_ray.engine.life import State

REST_S, LONGEST_REST_S = 600.0, 9600.0  # that a pool whose new engine could not start is asked for none by itself


class NoRoom(Exception):
    """There is no place for another engine; the message says why, and what would help."""


class EngineRoom(Protocol):
    """Who gives the places of engines, and takes them back. A place is what the pool passes on to Ray."""

    async def take(self, pool: str, count: int) -> dict[int, Any]:
        """Places for so many more engines of the pool, by their numbers. Raises NoRoom, and has then taken none."""
        ...

    def at_once(self, pool: str, count: int) -> int:
        """For how many of them there is room now."""
        ...

    def give_back(self, pool: str, count: int, places: Mapping[int, Any]) -> None:
        """So many engines of the pool are gone, and no engine has these places any more."""
        ...

    async def settle(self) -> None:
        """A change is over: what no engine took is nobody's."""
        ...


class Resizing:
    def __init__(
        self,
        pools: Mapping[str, Any],
        counts: Mapping[str, int],
        room: EngineRoom,
        grows: Callable[[], object] = lambda: None,
    ):
        """`pools` are handles of pools, which have `counts` engines now; `grows` is called when one gets places."""
        self.pools = pools
        self.counts = dict(counts)
        self.room = room
        self.grows = grows
        self.turn = asyncio.Lock()
        self.queued = 0  # changes that wait for the one under way
        self.late: Counter[str] = Counter()  # engines that did not leave in time, and have their places still
        self.failed: dict[str, tuple[int, float]] = {}  # starts in a row that failed, and when the last one did

    @property
    def seated(self) -> dict[str, int]:
        """How many engines of each pool have places."""
        return {pool: count + self.late[pool] for pool, count in self.counts.items()}

    def may_grow(self, pool: str) -> bool:
        """Whether another engine is worth a try: one that could not start is left alone for longer each time."""
        times, when = self.failed.get(pool, (0, 0.0))
        return not times or time.monotonic() - when > min(LONGEST_REST_S, REST_S * 2 ** (times - 1))

    async def bring(self, wanted: Mapping[str, int]) -> list[str]:
        """Bring the pools to these numbers; returns what could not be done. Raises what a pool that has died raises."""
        self.queued += 1
        try:
            await self.turn.acquire()
        finally:
            self.queued -= 1
        try:
            return await self._bring(wanted)
        finally:
            self.turn.release()

    async def _bring(self, wanted: Mapping[str, int]) -> list[str]:
        grow = {pool: count - self.counts[pool] for pool, count in wanted.items() if count > self.counts[pool]}
        now = {pool: 0 if self.late[pool] else self.room.at_once(pool, count) for pool, count in grow.items()}
        first = [self._grow(pool, count) for pool, count in now.items() if count]
        shrink = [
            self._shrink(pool, min(count, self.counts[pool]))
            for pool, count in wanted.items()
            if count < self.counts[pool] or self.late[pool]
        ]
        rest = [self._grow(pool, grow[pool] - now[pool]) for pool in grow if grow[pool] > now[pool]]
        told = await asyncio.gather(*first, self._one_after_another(shrink, rest))
        await self.room.settle()
        return [sentence for sentences in told for sentence in sentences]

    async def _one_after_another(self, *groups: list[Any]) -> list[str]:
        told = []
        for group in groups:
            told += [sentence for sentences in await asyncio.gather(*group) for sentence in sentences]
        return told

    async def _shrink(self, pool: str, count: int) -> list[str]:
        fewer = self.counts[pool] - count
        try:
            await self.pools[pool].resize.remote(count)
        except Exception as e:
            serve = await self._that_stay(pool)
            self.late[pool] += self.counts[pool] - serve
            self.counts[pool] = serve
            leaving = f", and {self.late[pool]} that leave" if self.late[pool] else ""
            return [f"the {pool} still has {serve} engines{leaving}: {reason(e)}"]
        self.counts[pool] = count
        await self._give_back(pool, fewer)
        return []

    async def _that_stay(self, pool: str) -> int:
        """How many engines the pool has that do not leave."""
        with contextlib.suppress(Exception):  # it has died: there are as many as before
            lives = (await self.pools[pool].status.remote())["lives"]
            return sum(life["state"] != State.LEAVING for life in lives)
        return self.counts[pool]

    async def _give_back(self, pool: str, gone: int) -> None:
        """So many engines are gone, and after a resize that was done all that were late before."""
        gone += self.late.pop(pool, 0)
        self.room.give_back(pool, gone, await self.pools[pool].give_back.remote())

    async def _grow(self, pool: str, more: int) -> list[str]:
        before = self.counts[pool]
        try:
            places = await self.room.take(pool, more)
        except NoRoom as e:
            return [f"the {pool} stays at {before} engines: {e}"]
        self.counts[pool] += more
        self.grows()
        try:
            await self.pools[pool].resize.remote(self.counts[pool], places)
        except Exception as e:
            self.failed[pool] = self.failed.get(pool, (0, 0.0))[0] + 1, time.monotonic()
            self.counts[pool] -= more
            self.room.give_back(pool, more, await self.pools[pool].give_back.remote())
            return [
                f"the {pool} goes on with {self.counts[pool]} engines, since a new one could not start: {reason(e)}"
            ]
        self.failed.pop(pool, None)
        if self.late[pool]:
            await self._give_back(pool, 0)
        return []
