"""Leases: which client may ask which engine. The pool counts them, since the requests do not pass through it.

    give(engine, client) -> Lease -> the client asks that engine -> end(lease)

A lease stands for one request that one start of one engine was given. It counts as load of that engine until one of
these happens, so no load is counted for ever:

- its client says that it is over: answered, failed, cancelled, or lost with its engine;
- its engine is started again: the load of the new start is counted from 0;
- another run takes the pool: Ray Data may have ended the stage of the run before without a word;
- its client leaves, or its process has died: another process then speaks for the same actor;
- its deadline is over by LATE_S, and nobody has said anything.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from trd_ray.engine.fleet import Life

LATE_S = 60.0


class Who(NamedTuple):
    """A client. An actor that Ray restarts keeps its name and is another process."""

    actor: str  # its id; in a driver or a task, the id of the process
    process: str
    number: int  # among the clients of the process


class Lease(NamedTuple):
    number: int
    engine: str  # the `start_id` of the engine that was given the request


class Admission(NamedTuple):
    """What the pool answers to those who asked to be admitted."""

    leases: list[Lease]
    engines: dict[str, Any]  # start_id -> handle, of engines that the client has not been told before
    run: int  # the run of the pool to which the requests belong from now on
    pool: str
    request_timeout_s: float


@dataclass(frozen=True)
class Given:
    """A lease as the pool remembers it."""

    life: Life
    engine: str
    who: Who
    when_s: float  # on the monotonic clock


@dataclass
class Heard:
    """What the pool knows of a client."""

    leases: set[int] = field(default_factory=set)
    engines: set[str] = field(default_factory=set)  # whose handles it has been told


class Leases:
    def __init__(self, request_timeout_s: float):
        self.lasts_s = request_timeout_s + LATE_S
        self._given: dict[int, Given] = {}  # the oldest first
        self._clients: dict[Who, Heard] = {}
        self._numbers: Iterator[int] = count(time.time_ns())  # no lease of an earlier process of the pool has them

    def hear(self, who: Who) -> bool:
        """A client speaks; says whether it is the first of a new process, so that what the earlier one held is over."""
        if who in self._clients:
            return False
        gone = [other for other in self._clients if other.actor == who.actor and other.process != who.process]
        for other in gone:
            self.leave(other)
        self._clients[who] = Heard()
        return bool(gone)

    def knows(self, who: Who) -> bool:
        return who in self._clients

    def leave(self, who: Who) -> None:
        """The client is gone, and what it held is over."""
        heard = self._clients.pop(who, None)
        for number in list(heard.leases) if heard else ():
            self.end(number)

    def give(self, life: Life, who: Who) -> Lease:
        lease = Lease(next(self._numbers), life.spec.start_id)
        self._given[lease.number] = Given(life, lease.engine, who, time.monotonic())
        self._clients[who].leases.add(lease.number)
        life.outstanding += 1
        return lease

    def untold(self, leases: list[Lease], who: Who) -> set[str]:
        """The engines among these leases whose handles the client has not been told; it counts as told from now on."""
        told = self._clients[who].engines
        new = {lease.engine for lease in leases} - told
        told |= new
        return new

    def find(self, number: int) -> Given | None:
        return self._given.get(number)

    def end(self, number: int) -> Given | None:
        """The lease, if it was not over before; it counts no longer."""
        given = self._given.pop(number, None)
        if given is None:
            return None
        if heard := self._clients.get(given.who):
            heard.leases.discard(number)
        if given.life.spec.start_id == given.engine:
            given.life.outstanding -= 1
        return given

    def forget(self) -> None:
        """All leases are over, also those of clients that go on: nobody waits for the answers any longer."""
        for number in list(self._given):
            self.end(number)

    def expire(self) -> bool:
        """End the leases that are late, and say whether there were any."""
        began_before = time.monotonic() - self.lasts_s
        late = []
        for number, given in self._given.items():
            if given.when_s > began_before:
                break
            late.append(number)
        for number in late:
            self.end(number)
        return bool(late)
