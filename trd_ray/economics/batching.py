"""Continuous batching in one engine: when each request of a step is done.

    requests (arrival, prompt, answer), EngineSpeed  ->  serve()  ->  finish of each, seconds at work

The engine admits what has arrived while its cache and its places allow, reads the prompt, and gives each sequence a
token an iteration. Where the cache is full, it preempts the newest sequence, whose tokens are read again later. Time
jumps from event to event (an answer ends, a request arrives, the cache is full), between which the batch is constant
and the cache grows by a token a sequence: the seconds of k iterations have a closed form. A step of 512 answers of
8,000 tokens takes some milliseconds.

Near its end a step has few long sequences left, and an iteration costs almost as much as with many: that is its tail.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trd_ray.economics import constants as c
from trd_ray.economics.engine_speed import EngineSpeed


@dataclass(frozen=True)
class EngineRequest:
    arrives_s: float
    prompt: int
    answer: int
    cached: int = 0  # of the prompt, known to the prefix cache
    then: "EngineRequest | None" = None  # what follows in the same engine, `arrives_s` after this one is done
    adapter: bool = False


@dataclass(frozen=True)
class Served:
    finish_s: list[float]  # of each request, and of what followed it
    first_s: list[float]  # of each request alone
    busy_s: float
    iterations: int
    preempted: int

    @property
    def end_s(self) -> float:
        return max(self.finish_s, default=0.0)


class _Engine:
    def __init__(self, requests: Sequence[EngineRequest], speed: EngineSpeed):
        self.speed = speed
        self.waiting: list[tuple[float, int, int, int, int, EngineRequest]] = []
        for i, r in enumerate(requests):
            heapq.heappush(self.waiting, (r.arrives_s + speed.request_s, i, r.prompt, r.answer, r.cached, r))
        self.running: dict[int, tuple[int, int, int, EngineRequest]] = {}  # id -> prompt, answer left, done at count
        self.ends: list[tuple[int, int]] = []  # (count at which it is done, id)
        self.count = 0  # iterations so far
        self.t = self.busy = 0.0
        self.cached = 0.0  # tokens in the cache
        self.preempted = 0
        self.finish = [0.0] * len(requests)
        self.first: list[float | None] = [None] * len(requests)

    def run(self) -> Served:
        while self.waiting or self.running:
            if not self.running:
                self.t = max(self.t, self.waiting[0][0])
            self._admit()
            self._decode()
        first = [at if at is not None else end for at, end in zip(self.first, self.finish, strict=True)]
        return Served(self.finish, first, self.busy, self.count, self.preempted)

    def _admit(self) -> None:
        speed = self.speed
        while self.waiting and self.waiting[0][0] <= self.t and len(self.running) < speed.most_sequences:
            # Room for a token of each, too: else what was preempted would come back at once, to be preempted again.
            free = max(c.PREFILL_WATERMARK_TOKENS, len(self.running) + 1)
            room = speed.cache_tokens - self.cached - free
            if self.running and self.waiting[0][2] > room:
                return
            _, i, prompt, answer, cached, request = heapq.heappop(self.waiting)
            seconds = speed.prefill_s(prompt, cached)
            self.t += seconds
            self.busy += seconds
            self.cached += prompt
            self.running[i] = (prompt, answer, self.count + max(1, answer), request)
            heapq.heappush(self.ends, (self.count + max(1, answer), i))

    def _decode(self) -> None:
        n = len(self.running)
        while self.ends and (self.ends[0][1] not in self.running or self._end(self.ends[0][1]) != self.ends[0][0]):
            heapq.heappop(self.ends)  # of one that was preempted
        k = self.ends[0][0] - self.count
        left = self.speed.cache_tokens - self.cached
        if left < n and n > 1:
            self._preempt()
            return
        if math.isfinite(left) and n > 1:
            k = min(k, int(left // n))
        if self.waiting and n < self.speed.most_sequences and self.waiting[0][0] > self.t:
            k = min(k, self._until(self.waiting[0][0] - self.t, n))
        k = max(1, k)
        seconds = k * self.speed.iteration_s(n, self.cached + n * (k + 1) / 2)
        self.t += seconds
        self.busy += seconds
        self.count += k
        self.cached += n * k
        while self.ends and self.ends[0][0] <= self.count:
            end, i = heapq.heappop(self.ends)
            if i in self.running and self._end(i) == end:
                self._finish(i)

    def _until(self, seconds: float, n: int) -> int:
        """The iterations of n sequences that take so long."""
        a = n * self.speed.cached_token_s / 2
        b = self.speed.iteration_s(n, self.cached)
        if a <= 0:
            return math.ceil(seconds / b)
        return math.ceil((math.sqrt(b * b + 4 * a * seconds) - b) / (2 * a))

    def _end(self, i: int) -> int:
        return self.running[i][2]

    def _finish(self, i: int) -> None:
        prompt, answer, _, request = self.running.pop(i)
        self.cached -= prompt + answer
        if self.first[i] is None:
            self.first[i] = self.t
        self.finish[i] = self.t
        after = request.then
        if after is not None:
            when = self.t + after.arrives_s + self.speed.request_s
            heapq.heappush(self.waiting, (when, i, after.prompt, after.answer, after.cached, after))

    def _preempt(self) -> None:
        """The newest sequence gives its place; it comes first where there is room again."""
        i = next(reversed(self.running))
        prompt, answer, end, request = self.running.pop(i)
        left = end - self.count
        done = answer - left
        self.cached -= prompt + done
        self.preempted += 1
        heapq.heappush(self.waiting, (-1.0, i, prompt + done, left, 0, request))


def serve(requests: Sequence[EngineRequest], speed: EngineSpeed) -> Served:
    """One engine, whose first request may arrive at 0."""
    return _Engine(requests, speed).run()


@dataclass(frozen=True)
class PoolServed:
    finish_s: list[float]
    first_s: list[float]
    busy_s: list[float]  # of each engine

    @property
    def end_s(self) -> float:
        return max(self.finish_s, default=0.0)

    @property
    def mean_busy_s(self) -> float:
        return sum(self.busy_s) / len(self.busy_s)


def serve_pool(requests: Sequence[EngineRequest], engines: int, speed: EngineSpeed) -> PoolServed:
    """A pool that gives each request, as they arrive, to the engine with the fewest tokens before it."""
    return _pool_served(tuple(requests), engines, speed)


@lru_cache(maxsize=256)  # changes of one recipe have most of their pools in common
def _pool_served(requests: tuple[EngineRequest, ...], engines: int, speed: EngineSpeed) -> PoolServed:
    order = sorted(range(len(requests)), key=lambda i: (requests[i].arrives_s, i))
    at_once = len({r.arrives_s for r in requests}) <= 1
    loads = [(0.0, e) for e in range(engines)]
    shares: list[list[int]] = [[] for _ in range(engines)]
    for turn, i in enumerate(order):
        if at_once:  # nobody knows the answers' lengths, so those who come together are dealt out in turn
            shares[turn % engines].append(i)
            continue
        load, e = heapq.heappop(loads)
        shares[e].append(i)
        heapq.heappush(loads, (load + requests[i].prompt + 8 * requests[i].answer, e))
    finish, first = [0.0] * len(requests), [0.0] * len(requests)
    busy = []
    for share in shares:
        served = serve([requests[i] for i in share], speed)
        busy.append(served.busy_s)
        for i, end, alone in zip(share, served.finish_s, served.first_s, strict=True):
            finish[i], first[i] = end, alone
    return PoolServed(finish, first, busy)
