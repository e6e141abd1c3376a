"""How full the pools are, moment by moment: what the policy of scaling decides from.

    engine -> EngineLoad (running, waiting, cache) -> PoolLoad: how many engines its requests would fill
    PoolLoads of every pool, a second each         -> Moment

A pool in which requests wait for a place in an engine would fill more engines than it has. One whose engines have room
fills fewer. Requests that wait at the gate for new weights fill none: no engine could take them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class EngineLoad(NamedTuple):
    """What an engine does at a moment, as its scheduler sees it."""

    running: int  # requests that it decodes
    waiting: int  # requests that it has no place for
    cache: float  # share of the KV cache that its requests hold

    def demand(self, max_concurrent: int) -> float:
        """How many engines its requests would fill."""
        if not self.running:
            return 1.0 if self.waiting else 0.0
        full = 1.0 if self.waiting else min(1.0, max(self.running / max_concurrent, self.cache))
        return full * (self.running + self.waiting) / self.running


class PoolLoad(NamedTuple):
    """A pool at a moment."""

    at_s: float  # Unix time
    engines: int  # that serve, or would if no weights were on their way
    running: int
    waiting: int
    cache: float  # mean over the engines
    demand: float  # how many engines its requests would fill

    @classmethod
    def of(cls, at_s: float, engines: Sequence[EngineLoad], max_concurrent: int) -> "PoolLoad":
        return cls(
            at_s,
            len(engines),
            sum(one.running for one in engines),
            sum(one.waiting for one in engines),
            sum(one.cache for one in engines) / max(1, len(engines)),
            sum(one.demand(max_concurrent) for one in engines),
        )


@dataclass(frozen=True)
class Moment:
    """Some seconds in which nothing changed."""

    seconds: float
    engines: Mapping[str, float]  # by pool
    demand: Mapping[str, float]


def moments(series: Mapping[str, Sequence[PoolLoad]], every_s: float, since_s: float = 0.0) -> list[Moment]:
    """What all pools did at the same time, from `since_s` on (Unix time).

    `series` has a load of each pool about every `every_s` seconds.
    Times at which one pool was not looked at, or had no engine, are left out.
    """
    by_time: dict[int, dict[str, PoolLoad]] = {}
    for pool, loads in series.items():
        for load in (load for load in loads if load.at_s >= since_s):
            by_time.setdefault(int(load.at_s // every_s), {})[pool] = load
    return [
        Moment(every_s, {pool: here[pool].engines for pool in series}, {pool: here[pool].demand for pool in series})
        for _, here in sorted(by_time.items())
        if len(here) == len(series) and all(load.engines for load in here.values())
    ]
