"""Continuous batching in one engine: when each request of a step is done.

    requests (arrival, prompt, answers), EngineSpeed  ->  serve()  ->  finish of each, seconds at work

The engine admits what has arrived while its cache and its places allow, reads the prompt, and gives each sequence a
token an iteration. Several answers to one prompt are as many sequences, whose prompt is read and kept once. Where the
cache is full, it preempts the newest sequence, whose tokens are read again later. Time jumps from event to event (an
answer ends, a request arrives, the cache is full), between which the batch is constant and the cache grows by a token a
sequence: the seconds of k iterations have a closed form. A step of 512 answers of 8,000 tokens takes some milliseconds.

Near its end a step has few long sequences left, and an iteration costs almost as much as with many: that is its tail.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trd_ray.economics import constants as c
from trd_ray.economics.engine_speed import EngineSpeed

TURN = 32  # iterations that one of two engines on a GPU makes before the other goes on


@dataclass(frozen=True)
class EngineRequest:
    arrives_s: float
    prompt: int
    answer: int
    cached: int = 0  # of the prompt, known to the prefix cache
    then: "EngineRequest | None" = None  # what follows, `arrives_s` after this one is done
    others: tuple[int, ...] = ()  # lengths of further answers to the same prompt, given beside the first


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


@dataclass
class _Sequence:
    request: int
    prompt: int
    answer: int
    known: int  # tokens of the prompt that others keep too
    end: int = 0  # the count of iterations at which it is done

    @property
    def own(self) -> int:
        return self.prompt - self.known


class _Engine:
    def __init__(self, speed: EngineSpeed):
        self.speed = speed
        self.after = self  # the engine that serves what follows
        self.waiting: list[tuple[float, int, _Sequence]] = []
        self.running: dict[int, _Sequence] = {}
        self.ends: list[tuple[int, int]] = []  # (count at which it is done, id)
        self.ids = 0
        self.asked: dict[int, EngineRequest] = {}  # under way, by the number of the request
        self.open: dict[int, int] = {}  # their answers that are not there yet
        self.count = 0  # iterations so far
        self.t = self.busy = 0.0
        self.cached = 0.0  # tokens that an iteration reads
        self.held = 0.0  # tokens in the cache
        self.preempted = 0
        self.finish: dict[int, float] = {}  # of each request, and of what followed it here
        self.first: dict[int, float] = {}  # of each request alone
        self.call: dict[int, list[int]] = {}  # request -> those of its call, which are answered together

    def ask(self, i: int, r: EngineRequest, after_s: float = 0.0) -> None:
        when = after_s + r.arrives_s + self.speed.request_s
        self.asked[i], self.open[i] = r, 1 + len(r.others)
        self._wait(when, _Sequence(i, r.prompt, r.answer, min(r.cached, r.prompt)))
        for answer in r.others:
            self._wait(when, _Sequence(i, r.prompt, answer, r.prompt))

    def _wait(self, when: float, one: _Sequence) -> None:
        self.ids += 1
        heapq.heappush(self.waiting, (when, self.ids, one))

    def run(self) -> None:
        while self.waiting or self.running:
            if not self.running:
                self.t = max(self.t, self.waiting[0][0])
            self.turn()

    def turn(self, most: float = math.inf) -> None:
        """Admit what has arrived, and make iterations to the next event, `most` of them."""
        self._admit()
        self._decode(most)

    def _admit(self) -> None:
        speed = self.speed
        while self.waiting and self.waiting[0][0] <= self.t and len(self.running) < speed.most_sequences:
            # Room for a token of each, too: else what was preempted would come back at once, to be preempted again.
            free = max(c.PREFILL_WATERMARK_TOKENS, len(self.running) + 1)
            if self.running and self.waiting[0][2].own > speed.cache_tokens - self.held - free:
                return
            _, number, one = heapq.heappop(self.waiting)
            seconds = speed.prefill_s(one.prompt, one.known)
            self.t += seconds
            self.busy += seconds
            self.cached += one.prompt
            self.held += one.own
            one.end = self.count + max(1, one.answer)
            self.running[number] = one
            heapq.heappush(self.ends, (one.end, number))

    def _decode(self, most: float) -> None:
        n = len(self.running)
        while self.ends and (self.ends[0][1] not in self.running or self._end(self.ends[0][1]) != self.ends[0][0]):
            heapq.heappop(self.ends)  # of one that was preempted
        k = self.ends[0][0] - self.count
        left = self.speed.cache_tokens - self.held
        if left < n and n > 1:
            self._preempt()
            return
        if math.isfinite(left) and n > 1:
            k = min(k, int(left // n))
        if self.waiting and n < self.speed.most_sequences and self.waiting[0][0] > self.t:
            k = min(k, self._until(self.waiting[0][0] - self.t, n))
        k = int(max(1, min(k, most)))
        seconds = k * self.speed.iteration_s(n, self.cached + n * (k + 1) / 2)
        self.t += seconds
        self.busy += seconds
        self.count += k
        self.cached += n * k
        self.held += n * k
        while self.ends and self.ends[0][0] <= self.count:
            end, number = heapq.heappop(self.ends)
            if number in self.running and self._end(number) == end:
                self._finish(number)

    def _until(self, seconds: float, n: int) -> int:
        """The iterations of n sequences that take so long."""
        a = n * self.speed.cached_token_s / 2
        b = self.speed.iteration_s(n, self.cached)
        if a <= 0:
            return math.ceil(seconds / b)
        return math.ceil((math.sqrt(b * b + 4 * a * seconds) - b) / (2 * a))

    def _end(self, number: int) -> int:
        return self.running[number].end

    def _finish(self, number: int) -> None:
        one = self.running.pop(number)
        i = one.request
        self.cached -= one.prompt + one.answer
        self.held -= one.own + one.answer
        self.open[i] -= 1
        if self.open[i]:
            return
        self.finish[i] = self.t
        self.first.setdefault(i, self.t)
        together = self.call.get(i, [i])
        if all(j in self.first for j in together):
            for j in together:
                if (then := self.asked.pop(j).then) is not None:
                    self.after.ask(j, then, self.t)

    def _preempt(self) -> None:
        """The newest sequence gives its place; it comes first where there is room again."""
        number = next(reversed(self.running))
        one = self.running.pop(number)
        left = one.end - self.count
        done = one.answer - left
        self.cached -= one.prompt + done
        self.held -= one.own + done
        self.preempted += 1
        heapq.heappush(self.waiting, (-1.0, number, _Sequence(one.request, one.prompt + done, left, 0)))


def serve(requests: Sequence[EngineRequest], speed: EngineSpeed) -> Served:
    """One engine, whose first request may arrive at 0."""
    engine = _Engine(speed)
    for i, request in enumerate(requests):
        engine.ask(i, request)
    engine.run()
    n = range(len(requests))
    return Served(
        [engine.finish[i] for i in n], [engine.first[i] for i in n], engine.busy, engine.count, engine.preempted
    )


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
    finish, first = [0.0] * len(requests), [0.0] * len(requests)
    busy = []
    for share in _shares(requests, engines):
        served = serve([requests[i] for i in share], speed)
        busy.append(served.busy_s)
        for i, end, alone in zip(share, served.finish_s, served.first_s, strict=True):
            finish[i], first[i] = end, alone
    return PoolServed(finish, first, busy)


def _shares(requests: Sequence[EngineRequest], engines: int) -> list[list[int]]:
    """The requests of each engine of a pool."""
    order = sorted(range(len(requests)), key=lambda i: (requests[i].arrives_s, i))
    if len({r.arrives_s for r in requests}) <= 1:  # nobody knows the answers' lengths: they are dealt out in turn
        return [order[e::engines] for e in range(engines)]
    loads = [(0.0, e) for e in range(engines)]
    shares: list[list[int]] = [[] for _ in range(engines)]
    for i in order:
        load, e = heapq.heappop(loads)
        shares[e].append(i)
        tokens = requests[i].prompt + 8 * (requests[i].answer + sum(requests[i].others))
        heapq.heappush(loads, (load + tokens, e))
    return shares


def serve_beside(
    requests: Sequence[EngineRequest], engines: int, speed: EngineSpeed, other: EngineSpeed, block: int = 1
) -> tuple[PoolServed, PoolServed]:
    """Two pools on the same GPUs, an engine of each on each: what follows a request goes to the engine beside.

    The two engines of a GPU take turns of TURN iterations as long as both have work, so each has the GPU for a part of
    the time. `block` requests of an engine are answered together. `finish_s` of the second pool is 0 for requests that
    nothing followed.
    """
    return _beside(tuple(requests), engines, speed, other, block)


@lru_cache(maxsize=64)
def _beside(
    requests: tuple[EngineRequest, ...], engines: int, speed: EngineSpeed, other: EngineSpeed, block: int
) -> tuple[PoolServed, PoolServed]:
    finish, after = [0.0] * len(requests), [0.0] * len(requests)
    pairs = [(_Engine(speed), _Engine(other)) for _ in range(engines)]
    for share, (one, two) in zip(_shares(requests, engines), pairs, strict=True):
        one.after = two
        for k, i in enumerate(share):
            one.ask(i, requests[i])
            one.call[i] = share[k - k % block : k - k % block + block]
        _alternate(one, two)
        for i in share:
            finish[i], after[i] = one.finish[i], two.finish.get(i, 0.0)
    pools = zip((finish, after), zip(*pairs, strict=True), strict=True)
    first, second = (PoolServed(ends, ends, [engine.busy for engine in some]) for ends, some in pools)
    return first, second


def _alternate(one: _Engine, two: _Engine) -> None:
    now = 0.0
    while busy := [engine for engine in (one, two) if engine.running or engine.waiting]:
        ready = [engine for engine in busy if engine.running or engine.waiting[0][0] <= now]
        if not ready:
            now = min(engine.waiting[0][0] for engine in busy)
        for engine in ready:
            engine.t = now
            engine.turn(TURN)
            now = engine.t
