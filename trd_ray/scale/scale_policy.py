"""When a pool gets an engine more, when one less, and when an engine moves from one pool to another.

    the moments of a step -> expected_s(): how long it would have taken with other numbers of engines
                          -> ScalePolicy.after_step() -> Decision: the numbers to have, and why

How the time of a step with other numbers is estimated, moment by moment. The *demand* of a pool is how many engines its
requests would fill (loads.py).

- **No pool is full**: every request has its place, and more engines would change nothing. With fewer engines than the
  demand, the moment takes as much longer as the engines are too few.
- **One pool is full**: the step waits for that pool. With k engines in place of n the moment takes n/k of its time, but
  no less than the demand allows, and no less than the other pool needs for what it does meanwhile. If the other one has
  more work for each of its engines, the step will wait for it in the end. Then the full pool matters only as far as the
  other one has nothing to do meanwhile.
- **Several are full**: all their queues must be worked off, so the step waits for the pool that has the most work of
  the whole window for each engine.

The rules:

- A change is made if it is expected to save at least `gain` of the time. Of changes that save about the same, the one
  with the fewest engines is taken, then the one that moves the fewest.
- A pool changes by half of its engines at most, in one decision: the estimate is good near to what was measured.
- Nothing is decided while a change is under way, and what was measured before its end is forgotten.
- An engine that could be missed in `calm_steps` decisions in a row is stopped. A pool that asks for one again soon
  after that is left twice as long the next time. So an engine does not come and go with every other step.

What this is not: a target for a queue's length or for a share of busy time. Those have no right value. A pool whose
engines are all busy may be the one that nobody waits for, as a sampler that runs ahead is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from trd_ray.scale.loads import Moment

EPSILON = 1e-9
ABOUT = 0.01  # times that differ by less than this share are as good as equal
FULL = 1.02  # a pool is full if its requests would fill so many times its engines

Counts = Mapping[str, int]


@dataclass(frozen=True)
class EngineBounds:
    least: int
    most: int


@dataclass(frozen=True)
class Decision:
    counts: dict[str, int]
    why: str


def expected_s(moments: Sequence[Moment], counts: Counts) -> float:
    """How long these moments would have taken with other numbers of engines."""
    work = {
        pool: sum(m.seconds * min(m.demand[pool], m.engines[pool]) for m in moments) for pool in counts
    }  # in engine-seconds
    return sum(m.seconds * _stretch(m, counts, work) for m in moments)


def waited_for(moments: Sequence[Moment], pools: Sequence[str]) -> dict[str, float]:
    """The share of the time in which each pool was full, so that a step may have waited for it."""
    total = sum(m.seconds for m in moments)
    return {pool: sum(m.seconds for m in moments if _full(m, pool)) / total if total else 0.0 for pool in pools}


def _full(moment: Moment, pool: str) -> bool:
    return moment.demand[pool] > FULL * moment.engines[pool]


def _stretch(moment: Moment, counts: Counts, work: Mapping[str, float]) -> float:
    """How many times as long the moment would take."""
    has, demand = moment.engines, moment.demand
    full = [pool for pool in counts if _full(moment, pool)]
    others = [demand[pool] / counts[pool] for pool in counts if pool not in full]
    if not full:
        return max(1.0, *others)
    each = {pool: has[pool] / min(counts[pool], max(demand[pool], has[pool])) for pool in full}
    if len(full) == 1:
        [pool] = full
        last = max(counts, key=lambda one: work[one] / counts[one])
        return max(each[pool] if last == pool else _fed(moment, counts, last, each[pool]), *others)
    lasts = {pool: work[pool] / has[pool] for pool in full}
    return max(max(lasts[pool] * each[pool] for pool in full) / max(max(lasts.values()), EPSILON), *others, 0.0)


def _fed(moment: Moment, counts: Counts, pool: str, feeder: float) -> float:
    """How many times as long a moment takes the pool with the most work, while what feeds it takes `feeder`."""
    busy = min(1.0, moment.demand[pool] / moment.engines[pool])
    return (1 - busy) * feeder + busy * max(1.0, moment.engines[pool] / counts[pool])


def _changed(counts: Counts, wanted: Counts) -> int:
    """How many engines would come or leave."""
    return sum(abs(count - counts[pool]) for pool, count in wanted.items())


def _grown(counts: Counts, wanted: Counts) -> list[str]:
    """The pools that would have more engines."""
    return [pool for pool, count in wanted.items() if count > counts[pool]]


@dataclass
class ScalePolicy:
    limits: Mapping[str, EngineBounds]
    gain: float = 0.05
    calm_steps: int = 5
    window_s: float = 30.0
    seen: list[Moment] = field(default_factory=list)  # since the last decision
    calm: dict[str, int] = field(default_factory=dict)  # decisions in a row in which the pool could miss an engine
    since_stopped: dict[str, int] = field(default_factory=dict)  # decisions since one was stopped
    patience: dict[str, int] = field(default_factory=dict)  # how many calm ones stop one, where not `calm_steps`

    def after_step(
        self, moments: Sequence[Moment], counts: Counts, fits: Callable[[Counts], bool] = lambda counts: True
    ) -> Decision | None:
        """What should change after a step with these moments, in which the pools had `counts` engines; None: nothing.

        `fits` says whether so many engines have room.
        """
        self.seen += moments
        now_s = sum(m.seconds for m in self.seen)
        if now_s < self.window_s:
            return None
        seen, self.seen = self.seen, []
        for pool in self.since_stopped:
            self.since_stopped[pool] += 1
        found = self._better(seen, counts, fits) or self._calmer(seen, counts)
        return found

    def changed(self) -> None:
        """A change has ended: what was measured before says nothing any more."""
        self.seen = []
        self.calm = {}

    def _better(self, seen: Sequence[Moment], counts: Counts, fits: Callable[[Counts], bool]) -> Decision | None:
        now_s = expected_s(seen, counts)
        near = product(*(self._near(pool, count) for pool, count in counts.items()))
        options = [dict(zip(counts, numbers, strict=True)) for numbers in near]
        options = [one for one in options if not _grown(counts, one) or fits(one)]
        times = [expected_s(seen, one) for one in options]
        best_s = min(times, default=now_s)
        if best_s > (1 - self.gain) * now_s:
            return None
        as_good = [one for one, seconds in zip(options, times, strict=True) if seconds <= (1 + ABOUT) * best_s]
        wanted = min(
            as_good, key=lambda one: (sum(one.values()), sum(abs(one[pool] - counts[pool]) for pool in counts))
        )
        for pool in _grown(counts, wanted):
            if self.since_stopped.pop(pool, 2 * self.calm_steps) < 2 * self.calm_steps:
                self.patience[pool] = 2 * self.patience.get(pool, self.calm_steps)
        shares = waited_for(seen, list(counts))
        longest = max(shares, key=lambda pool: shares[pool])
        saved = 1 - expected_s(seen, wanted) / now_s
        full = f"the {longest} was full in {shares[longest]:.0%} of the time"
        return Decision(wanted, f"{full}, and steps should take {saved:.0%} less")

    def _near(self, pool: str, count: int) -> range:
        limits, reach = self.limits[pool], max(1, count // 2)
        near = range(max(limits.least, count - reach), min(limits.most, count + reach) + 1)
        return near or range(count, count + 1)  # one that is far outside of its limits stays as it is

    def _calmer(self, seen: Sequence[Moment], counts: Counts) -> Decision | None:
        now_s = expected_s(seen, counts)
        for pool, count in counts.items():
            fewer = {**counts, pool: count - 1}
            missed = count > self.limits[pool].least and expected_s(seen, fewer) <= (1 + ABOUT) * now_s
            self.calm[pool] = self.calm.get(pool, 0) + 1 if missed else 0
            if self.calm[pool] >= self.patience.get(pool, self.calm_steps):
                self.since_stopped[pool] = 0
                return Decision(fewer, f"no step waited for an engine of the {pool} in the last {self.calm[pool]}")
        return None
