"""One engine of a pool through all its restarts, and its states; what they mean stands in fleet.py."""

import asyncio
import contextlib
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

import ray

from trd_ray.ending import end
from trd_ray.engine.actor import EngineSpec, result

STOP_TIMEOUT_S = 30


class State(StrEnum):
    STARTING = auto()
    RESTING = auto()
    STALE = auto()
    SERVING = auto()
    UPDATING = auto()
    LEAVING = auto()


UP = (State.STALE, State.SERVING, State.UPDATING)
MOVES = {
    State.STARTING: {State.SERVING, State.STALE, State.RESTING, State.LEAVING},
    State.RESTING: {State.STARTING, State.LEAVING},
    State.STALE: {State.UPDATING, State.STARTING, State.RESTING, State.LEAVING},
    State.SERVING: {State.UPDATING, State.STALE, State.STARTING, State.RESTING, State.LEAVING},
    State.UPDATING: {State.SERVING, State.STALE, State.STARTING, State.RESTING, State.LEAVING},
    State.LEAVING: set(),
}


@dataclass(eq=False)
class Life:
    """One engine of the fleet through all its restarts; each start is another actor, with another handle."""

    spec: EngineSpec
    handle: Any = None  # of the actor of this start; None: it has no actor now
    state: State = State.STARTING
    outstanding: int = 0  # leases of this start of it that are not over
    deaths: int = 0  # in a row
    passing: int = 0  # failures in a row after which it still answered
    well_s: float = 0.0  # when it last answered after such a failure, on the monotonic clock
    rest_s: float = 0.0  # how long its last rest was
    homeless: bool = False  # it rests since its node has gone, until it is given another place
    restarts: int = 0
    why: str = ""  # what its last death or failed start was
    check: asyncio.Task | None = None  # whether it answers, while that is being asked
    restart: asyncio.Task | None = None  # its last one, under way while the state is STARTING

    def move(self, to: State) -> None:
        if to not in MOVES[self.state]:
            raise RuntimeError(f"engine {self.spec.name} cannot go from {self.state} to {to}: see engine/fleet.py")
        self.state = to

    def answered(self) -> None:
        self.deaths = self.passing = 0
        self.rest_s = 0.0

    def kill(self) -> None:
        if self.handle is not None:
            end(self.handle)

    async def stop(self) -> None:
        """End its processes, in good order if it is up."""
        if self.handle is not None and self.state is not State.STARTING:  # one that is starting would not hear it
            with contextlib.suppress(Exception):
                await asyncio.wait_for(result(self.handle.shutdown.remote()), STOP_TIMEOUT_S)
                return ray.kill(self.handle)
        self.kill()

    def shown(self) -> dict[str, Any]:
        """What others may see of it."""
        return {
            "name": self.spec.name,
            "place": self.spec.place,
            "state": self.state.value,
            "running": self.outstanding,
            "restarts": self.restarts,
            "why": self.why,
        }


def in_words(news: dict[str, Any]) -> str:
    """What became of an engine, as a sentence."""
    rest = f" for {news['seconds']:.0f} s" if "seconds" in news else ""
    why = f": {news['why']}" if news["why"] else ""
    return f"engine {news['engine']} {news['what']}{rest}{why}"


def needs(options: dict[str, Any]) -> str:
    return f"{options.get('num_cpus', 0):g} CPUs and {options.get('num_gpus', 0):g} GPUs"
