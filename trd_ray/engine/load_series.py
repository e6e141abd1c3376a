"""How full a pool is, about once a second: its engines are asked for their loads, and the answers are kept.

    begin() -> follow(): engine.load() of each engine that holds requests -> PoolLoad -> series -> take(), once a step

An engine that does not answer in time counts with what the pool knows of it: the requests that it was given. `follow`
ends with the fleet. The series holds KEPT loads at most, so a pool that nobody asks does not grow.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

from trd_ray.engine.actor import result
from trd_ray.engine.fleet import Fleet, Life, State
from trd_ray.scale.loads import EngineLoad, PoolLoad

KEPT = 7200


class LoadSeries:
    def __init__(self, fleet: Fleet, every_s: float):
        self.fleet, self.every_s = fleet, every_s
        self.series: deque[PoolLoad] = deque(maxlen=KEPT)
        self.begun = False
        self.last = PoolLoad(0.0, 0, 0, 0, 0.0, 0.0)

    def begin(self) -> None:
        """Look from now on, if that is wanted; a second call changes nothing."""
        if self.every_s and not self.begun:
            self.begun = True
            self.fleet.watch(self.follow())

    async def follow(self) -> None:
        """Look every `every_s` seconds, for as long as the fleet lives."""
        loop = asyncio.get_running_loop()
        began, looks = loop.time(), 0
        started_s = time.time()
        while True:
            await self.look(started_s + loop.time() - began)
            looks = max(looks + 1, int((loop.time() - began) / self.every_s))
            await asyncio.sleep(began + looks * self.every_s - loop.time())

    async def look(self, at_s: float) -> None:
        lives = self.fleet.those(State.SERVING, State.UPDATING)
        loads = await asyncio.gather(*map(self._ask, lives))
        self.last = PoolLoad.of(at_s, loads, self.fleet.spec.engine.max_concurrent)
        self.series.append(self.last)

    async def _ask(self, life: Life) -> EngineLoad:
        if not life.outstanding:
            return EngineLoad(0, 0, 0.0)
        most = self.fleet.spec.engine.max_concurrent
        with contextlib.suppress(Exception):  # a death is met by the requests
            return await asyncio.wait_for(result(life.handle.load.remote()), self.every_s)
        return EngineLoad(min(life.outstanding, most), max(0, life.outstanding - most), 0.0)

    def take(self) -> list[PoolLoad]:
        """The loads since the last call."""
        taken = list(self.series)
        self.series.clear()
        return taken

    def shown(self) -> dict[str, Any]:
        """The last load, for people; `load` is the share of the places of engines that requests want."""
        last = self.last
        load = min(1.0, last.demand / last.engines) if last.engines else 0.0
        return {"decoding": last.running, "queued": last.waiting, "cache": last.cache, "load": load}
