"""What a pool offers to whoever changes the number of its engines: their places, a resize, and how full they are.

    resize(n, places) -> engines come to the places, or leave them     give_back() -> the places that none has any more
    take_loads()      -> how full the pool was since the last call

A place is known by its number, which is that of its seat in the plan. A number whose place was given back has none,
until another engine comes there.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from trd_ray.engine.actor import PoolSpec
from trd_ray.engine.fleet import Fleet
from trd_ray.engine.load_series import LoadSeries
from trd_ray.scale.loads import PoolLoad


class Resizable:
    """A part of `Pool`, which has these."""

    spec: PoolSpec
    fleet: Fleet
    update: Any
    coming: Any

    async def resize(self, replicas: int, places: Mapping[int, Any] | None = None) -> None:
        """Grow or shrink to so many engines while running; leaving engines answer what they hold first.

        New engines get `places`, by their numbers, and those that are free already.
        """
        if replicas < 1:
            raise ValueError(f"pool {self.spec.name} needs at least 1 engine, not {replicas}")
        for number, place in (places or {}).items():
            self.spec.places += [None] * (number + 1 - len(self.spec.places))
            self.spec.places[number] = place
        await self.fleet.notify()  # what the next process of the pool must know
        await self.fleet.resize(replicas, may_stop=lambda: not (self.update or self.coming))

    async def give_back(self) -> dict[int, Any]:
        """The places that no engine has, by their numbers; the pool then no longer has them either."""
        taken = {life.spec.place for life in self.fleet.lives}
        free = {i: place for i, place in enumerate(self.spec.places) if place is not None and i not in taken}
        for i in free:
            self.spec.places[i] = None
        await self.fleet.notify()
        return free

    # How full it is

    @cached_property
    def loads(self) -> LoadSeries:
        return LoadSeries(self.fleet, self.spec.load_every_s)

    async def take_loads(self) -> list[PoolLoad]:
        """How full the pool was, since the last call."""
        return self.loads.take()
