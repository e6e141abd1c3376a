"""Which of the open engines gets a request: the one that has its prefix, unless another is less loaded by too much.

    loads, prefixes --choose--> an engine for each request, those before it in the list included in the loads

vLLM keeps the keys of prompts that it has read. The rollouts of a problem begin alike, so the second one that comes to
the same engine skips most of its prefill. An engine that is restarted has lost its keys, and is known by another id.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence

from trd_ray.engine.life import Life

# By how much the engine with the prefix may be busier: so many requests, or this share of the least load.
SLACK, SLACK_SHARE = 8, 1 / 8
REMEMBERED = 100_000  # prefixes


class Routing:
    def __init__(self) -> None:
        self._homes: OrderedDict[int, str] = OrderedDict()  # prefix -> start_id; the one used last is the last

    def choose(self, lives: list[Life], prefixes: Sequence[int | None]) -> list[Life]:
        """An engine for each request, whose prefix may be None: that one goes to the engine that has the fewest."""
        loads = [life.outstanding for life in lives]
        places = {life.spec.start_id: i for i, life in enumerate(lives)}
        heap = [(load, i) for i, load in enumerate(loads)]
        heapq.heapify(heap)
        chosen = []
        for prefix in prefixes:
            while heap[0][0] != loads[heap[0][1]]:  # it got a request since
                heapq.heappop(heap)
            least, i = heap[0]
            if prefix is not None:
                home = places.get(self._homes.get(prefix, ""))
                if home is not None and loads[home] <= least + max(SLACK, least * SLACK_SHARE):
                    i = home
                self._remember(prefix, lives[i].spec.start_id)
            loads[i] += 1
            heapq.heappush(heap, (loads[i], i))
            chosen.append(lives[i])
        return chosen

    def forget(self) -> None:
        """Other weights have come, and the keys of the old ones are gone."""
        self._homes.clear()

    def _remember(self, prefix: int, start_id: str) -> None:
        self._homes[prefix] = start_id
        self._homes.move_to_end(prefix)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)


def least_loaded(lives: list[Life], count: int) -> list[Life]:
    """An engine for each of so many requests without a prefix."""
    return Routing().choose(lives, [None] * count)
