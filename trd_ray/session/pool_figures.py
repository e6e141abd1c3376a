"""What each pool does, for status.json: its own status, how fast it makes tokens, and how busy its engines are.

    Session.statuses()  --heard(name, status)-->  PoolFigures  --latest()-->  {"sampler": {..., "busy": 0.8}}
                                                       '--> pool.status, asked without waiting for the answer

The run asks its pools only where it waits for rows. In the other waits, as for the learner, `latest` asks them itself,
and shows what they answered to the call before.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

RATE_S = 2.0  # least time over which tokens a second are counted
MEMORY_S = 30.0  # `busy` is a mean in which what was so long ago has a weight of 1/e


class PoolFigures:
    def __init__(
        self,
        pools: Mapping[str, Any],
        places: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`places` is how many requests an engine of each pool works on at once."""
        self.pools = pools
        self.places = places
        self.clock = clock
        self.last: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, Any] = {}
        self._counted: dict[str, tuple[float, int]] = {}  # when, and the tokens that the pool had made by then
        self._heard: dict[str, float] = {}

    def heard(self, name: str, status: dict[str, Any]) -> None:
        now = self.clock()
        before = self.last.get(name, {})
        then, tokens = self._counted.get(name, (now, status["tokens"]))
        rate = before.get("tokens_per_s", 0.0)
        if now - then >= RATE_S:
            rate = max(0, status["tokens"] - tokens) / (now - then)  # another process of the pool counts from 0
        if now - then >= RATE_S or name not in self._counted:
            self._counted[name] = now, status["tokens"]
        share = min(1.0, status["running"] / max(1, status["up"] * self.places[name]))
        weight = math.exp(-(now - self._heard.get(name, -math.inf)) / MEMORY_S)
        busy = weight * before.get("busy", 0.0) + (1 - weight) * share
        self._heard[name] = now
        self.last[name] = status | {"tokens_per_s": round(rate, 1), "busy": round(busy, 3)}

    def latest(self) -> dict[str, dict[str, Any]]:
        if not ray.is_initialized():  # the run has ended: what it did last stays to be seen
            return self.last
        for name, pool in self.pools.items():
            asked = self._asked.get(name)
            if asked is not None and ray.wait([asked], timeout=0)[0]:
                self._take(name, asked)
                asked = None
            if asked is None:
                self._asked[name] = pool.status.remote()
        return self.last

    def _take(self, name: str, asked: Any) -> None:
        try:
            self.heard(name, ray.get(asked))
        except Exception as e:  # the run itself meets what happened to its pool
            why = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            self.last[name] = self.last.get(name, {}) | {"failure": why}
