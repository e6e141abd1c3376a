"""Seats for engines that come while a run goes on, and those of engines that have gone.

    take(pool, n) -> seats on the machines of the plan, if they hold them -> taken from Ray -> Places
                  -> else, on a cluster, Ray's autoscaler is asked, and waited for up to scale.nodes_timeout_s
                  -> else NoRoom, with what is missing

The plan holds the memory of the machines too, so no engine is started beyond it. All others keep their seats. What
changes the reservation holds `session.seating`: the run may make seats again at the same time, for engines whose node
has gone.
"""

import asyncio
import itertools
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray.autoscaler.sdk import request_resources

from trd_ray.engine.reservation import Place, reserve_again
from trd_ray.errors import UserError
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.reseating import Who, seats_for
from trd_ray.session.cluster import is_local
from trd_ray.session.fresh_seats import machines_now
from trd_ray.session.nodes_wanted import NodesWanted
from trd_ray.session.resizing import NoRoom
from trd_ray.session.session import Session

TAKE_S = 10.0  # for Ray to give what a plan has free
LOOK_EVERY_S = 2.0


class SeatedRoom:
    """The room of a run: `resizing.EngineRoom`."""

    def __init__(self, session: Session):
        self.session = session
        self.recipe = session.recipe
        self.local = is_local(session.recipe)
        self.over = threading.Event()  # the run ends: nobody waits for nodes any longer
        self.newer: Callable[[], bool] = lambda: False  # whether another change was asked for: nodes can wait
        self.vain: frozenset[str] = frozenset()  # the machines there were when nodes were waited for in vain

    @property
    def plan(self) -> Placement:
        return self.session.reservation.plan

    def fits(self, wanted: Mapping[str, int], counts: Mapping[str, int]) -> bool:
        """Whether the pools can have so many engines in place of `counts`, as far as is known."""
        leave = Counter({pool: counts[pool] - count for pool, count in wanted.items() if count < counts[pool]})
        without = replace(self.plan, seats=_but_the_last(self.plan, leave))
        starting = [who for pool, count in wanted.items() for who in self._next(without, pool, count - counts[pool])]
        if not starting or seats_for(starting, without, self.plan.machines, self.recipe).fits:
            return True
        return not self.local and self._machines() != self.vain

    def at_once(self, pool: str, count: int) -> int:
        plan = self.plan

        def is_too_many(more: int) -> bool:
            return not seats_for(self._next(plan, pool, more), plan, plan.machines, self.recipe).fits

        return bisect_left(range(1, count + 1), True, key=is_too_many)

    async def take(self, pool: str, count: int) -> dict[int, Place]:
        return await asyncio.to_thread(self._take, pool, count)

    def _take(self, pool: str, count: int) -> dict[int, Place]:
        limit_s = 0.0 if self.local else self.recipe.scale.nodes_timeout_s
        begun, said = time.monotonic(), False
        wanted = NodesWanted(request_resources)
        try:
            while True:
                places, missing = self._try(pool, count)
                if places is not None:
                    self.vain = frozenset()
                    return places
                if time.monotonic() - begun >= limit_s:
                    self.vain = self._machines()
                    waited = f", also after {limit_s:.0f} s (scale.nodes_timeout_s)" if limit_s else ""
                    raise NoRoom(f"there is no place for another engine{waited}: {missing}")
                if self.newer():
                    raise NoRoom(f"a node is not waited for, since another change was asked for: {missing}")
                if not said:
                    said = True
                    self.session.display.say(f"asking for a node, for an engine of the {pool}: {missing}")
                wanted.ask(self._next(self.plan, pool, count), self.plan)
                self.over.wait(LOOK_EVERY_S)
        finally:
            wanted.over()

    def _try(self, pool: str, count: int) -> tuple[dict[int, Place] | None, str]:
        """The places, or None and what is missing."""
        with self.session.seating:
            self._go_on()
            before = self.session.reservation
            starting = self._next(before.plan, pool, count)
            plan = seats_for(starting, before.plan, machines_now(before.plan.machines, self.recipe), self.recipe)
            if not plan.fits:
                return None, "; ".join(plan.reasons)
            try:
                reservation = reserve_again(before, plan, TAKE_S, self._go_on)
            except UserError as e:  # somebody else has what the machines have
                return None, str(e)
            self._have(reservation)
            by_number = reservation.places_by_number(pool)
            return {number: by_number[number] for _, number in starting if number in by_number}, ""

    def _go_on(self) -> None:
        if self.over.is_set():
            raise NoRoom("the run ends")

    def give_back(self, pool: str, count: int, places: Mapping[int, Any]) -> None:
        """The seats are free from now on; Ray has them back when `settle` finds that nobody took them."""
        with self.session.seating:
            before = self.session.reservation
            plan = before.plan
            seats = tuple(seat for seat in plan.seats if seat.actor != pool or seat.number not in places)
            plan = replace(plan, seats=seats)
            plan = replace(plan, seats=_but_the_last(plan, Counter({pool: count - len(places)})))
            self._have(replace(before, plan=plan))

    async def settle(self) -> None:
        def release() -> None:
            with self.session.seating:
                self._have(reserve_again(self.session.reservation, self.plan, TAKE_S))

        await asyncio.to_thread(release)

    def _have(self, reservation: Any) -> None:
        self.session.reservation = reservation
        self.session.plan = reservation.plan
        self.session.machines = reservation.plan.machines

    def _next(self, plan: Placement, pool: str, count: int) -> list[Who]:
        """The next engines of the pool, by the numbers that none has.

        One whose node has gone, or is about to, has its number, though it has no seat.
        """
        lives = self.session.figures.last.get(pool, {}).get("lives", [])
        taken = {seat.number for seat in plan.seats_of(pool)} | {life["place"] for life in lives}
        free = (number for number in itertools.count() if number not in taken)
        return [(pool, number) for number in itertools.islice(free, max(0, count))]

    def _machines(self) -> frozenset[str]:
        return frozenset(machine.node_id or machine.name for machine in self.plan.machines)


def _but_the_last(plan: Placement, leave: Mapping[str, int]) -> tuple[Any, ...]:
    """The seats without so many of each pool, the last ones."""
    gone = {(pool, seat.number) for pool, count in leave.items() if count > 0 for seat in plan.seats_of(pool)[-count:]}
    return tuple(seat for seat in plan.seats if (seat.actor, seat.number) not in gone)
