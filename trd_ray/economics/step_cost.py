"""A step of a run from its parts: which seconds overlap, by placement, staleness and what new weights wait for.

    Setup (engines, learner, how they are placed), rows  ->  step_cost()  ->  StepCost

What binds a step, with k = stream.max_staleness:

    k = 0                sampling, refining (which begins with the first rollout that is done), training, sync: one
                         after the other
    k >= 1, draining     the longest of: all rollouts of a step sampled, training, the work of the refiner, and the
                         three one after the other, divided by k + 1 (see record/bounds.py)
    k >= 1, keeping      the same, but with the work of the sampler in place of its longest rollout; rollouts under way
                         are read again by the engines after each sync
    never                the work of the fullest of the three
    shares of a GPU      besides, the sum of the work of all that sit on it
    in turn              (timeshare) sampling on all GPUs, refining on all, training on all, and the changes between
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trd_ray.economics import constants as c
from trd_ray.economics.batching import EngineRequest, PoolServed, serve_pool
from trd_ray.economics.engine_speed import EngineSpeed
from trd_ray.economics.workload import Row

Placed = Literal["separate", "shared", "timeshare"]


@dataclass(frozen=True)
class PoolSetup:
    engines: int
    speed: EngineSpeed


@dataclass(frozen=True)
class Setup:
    placed: Placed
    sampler: PoolSetup
    refiner: PoolSetup | None  # None: nothing is refined
    staleness: int | Literal["never"]
    drains: bool  # new weights wait for the rollouts under way
    block: int  # rows that go on together
    samples: int  # rollouts of a problem, whose prompt is read once
    sync_s: float
    scheduling_s: float
    verify_s: float  # of a verdict, on the way from sampling to refining
    rows_a_second: float
    reads_again: bool  # rollouts under way lose their keys and values at a sync
    rest_s: float = 0.0  # timeshare: from engines to learner and back
    share: bool = False  # pools and learner have shares of the same GPUs: none is fast while another works


@dataclass(frozen=True)
class StepCost:
    step_s: float
    sample_s: float  # until the step's last rollout is sampled
    refine_s: float  # from the first request of refining to the last answer
    refine_ends_s: float  # after the step's first rollout began
    train_s: float  # with the probe of the weights
    sync_s: float
    rest_s: float  # scheduling, changes of timeshare
    busy_s: dict[str, float]  # seconds at work in a step, of each pool's mean engine and of a rank
    sampled_tokens: float
    refined_tokens: float

    def busy(self, pool: str) -> float:
        return min(1.0, self.busy_s[pool] / self.step_s)


def step_cost(setup: Setup, rows: Sequence[Row], train_s: float, earlier: Sequence[Row] = ()) -> StepCost:
    """One step of these rows. `earlier` are those of the step before, which are under way with them where k >= 1."""
    if setup.placed == "separate":
        found = _separate(setup, rows, train_s, earlier)
    else:
        found = _together(setup, rows, train_s, earlier)
    least = len(rows) / setup.rows_a_second
    return found if found.step_s >= least else replace(found, step_s=least, rest_s=found.rest_s + least - found.step_s)


def of_a_corpus(setup: Setup, train_s: float, rows: Sequence[Row]) -> StepCost:
    """A step of rows that are there already: training alone, without weights for any engine."""
    alone = replace(setup, staleness="never", refiner=None)
    found = _cost(alone, train_s, 0.0, 0.0, 0.0, train_s, {"learner": train_s}, rows)
    return replace(found, sampled_tokens=0.0)


def _sampling(rows: Sequence[Row], samples: int) -> list[EngineRequest]:
    return [EngineRequest(0.0, row.prompt, row.raw, row.prompt if i % samples else 0) for i, row in enumerate(rows)]


def _refined(rows: Sequence[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if row.refine_prompt]


def blocks(finish: Sequence[float], size: int) -> list[float]:
    """When each row goes on, if `size` of them go on together: with the last of them."""
    found = list(finish)
    for i in range(0, len(found), size):
        found[i : i + size] = [max(found[i : i + size])] * len(found[i : i + size])
    return found


def _separate(s: Setup, rows: Sequence[Row], train_s: float, earlier: Sequence[Row]) -> StepCost:
    sampled = serve_pool(_sampling(rows, s.samples), s.sampler.engines, s.sampler.speed)
    refined = None
    begin = 0.0
    if s.refiner and (chosen := _refined(rows)):
        on = blocks(sampled.finish_s, s.block)
        requests = [EngineRequest(on[i] + s.verify_s, rows[i].refine_prompt, rows[i].refined) for i in chosen]
        begin = min(r.arrives_s for r in requests)
        refined = serve_pool(requests, s.refiner.engines, s.refiner.speed)
    S = sampled.end_s
    ends = max(S, refined.end_s if refined else 0.0) + s.verify_s
    busy = {"sampler": sampled.mean_busy_s}
    if s.refiner:
        busy["refiner"] = refined.mean_busy_s if refined else 0.0
    busy["learner"] = train_s
    k = s.staleness
    full = _full_refiner(s, rows)
    engines = sum(busy.values()) - train_s
    if k == 0 and s.share:
        ends = max(ends, engines)
    if k == 0:
        work = ends + train_s
    else:
        waits = k != "never" and s.drains
        if not waits:
            busy["sampler"] = _flowing(s, rows, earlier)
        least = (ends + train_s) / (k + 1) if k != "never" else 0.0
        work = max(least, train_s, S if waits else busy["sampler"], full)
        if s.refiner:
            busy["refiner"] = max(full, min(busy["refiner"], work))
    if s.share:
        work = max(work, sum(busy.values()))
    return _cost(s, work, S, begin, ends, train_s, busy, rows)


def _full_refiner(s: Setup, rows: Sequence[Row]) -> float:
    """Seconds of each engine for a step's refinements where enough of them wait: in large batches."""
    if not s.refiner:
        return 0.0
    requests = [EngineRequest(0.0, row.refine_prompt, row.refined) for row in rows if row.refine_prompt]
    return serve_pool(requests, s.refiner.engines, s.refiner.speed).mean_busy_s


def _flowing(s: Setup, rows: Sequence[Row], earlier: Sequence[Row]) -> float:
    """Seconds of each engine for a step where two steps' rows are under way, which have no tail."""
    both = [*rows, *(earlier or rows)]
    served = serve_pool(_sampling(both, s.samples), s.sampler.engines, s.sampler.speed)
    again = 0.0
    if s.reads_again and s.staleness != "never":  # half of the rows, which are half done
        again = sum(s.sampler.speed.prefill_s(row.prompt + row.raw / 2) for row in rows) / 2 / s.sampler.engines
    return served.mean_busy_s * len(rows) / len(both) + again


def _together(s: Setup, rows: Sequence[Row], train_s: float, earlier: Sequence[Row]) -> StepCost:
    """The same engines sample and refine: a rollout's refinement joins the batch once it is done."""
    chosen = set(_refined(rows)) if s.refiner else set()
    k = s.staleness
    in_turn = s.placed == "timeshare"
    served = _both(s, rows, chosen)
    if in_turn and s.refiner is not s.sampler and s.refiner:  # two models, one after the other
        sampled = serve_pool(_sampling(rows, s.samples), s.sampler.engines, s.sampler.speed)
        after = [EngineRequest(0.0, rows[i].refine_prompt, rows[i].refined) for i in sorted(chosen)]
        refined = serve_pool(after, s.refiner.engines, s.refiner.speed)
        S, begin, ends = sampled.end_s, sampled.end_s, sampled.end_s + refined.end_s
        busy_s = sampled.mean_busy_s + refined.mean_busy_s
    else:
        S = max(served.first_s, default=0.0)
        begin = min((served.first_s[i] for i in chosen), default=0.0) if chosen else 0.0
        ends, busy_s = served.end_s + s.verify_s, served.mean_busy_s
    busy = {"sampler": busy_s, "learner": train_s}
    if in_turn or k == 0:
        work = ends + train_s
    else:
        if not s.drains or k == "never":
            more = [*rows, *(earlier or rows)]
            also = {i for i, row in enumerate(more) if row.refine_prompt} if s.refiner else set()
            busy["sampler"] = _both(s, more, also).mean_busy_s * len(rows) / len(more)
        least = (ends + train_s) / (k + 1) if k != "never" else 0.0
        work = max(least, train_s, busy["sampler"], S if s.drains and k != "never" else 0.0)
    return _cost(s, work, S, begin, ends, train_s, busy, rows)


def _both(s: Setup, rows: Sequence[Row], chosen: set[int]) -> PoolServed:
    after = {i: EngineRequest(s.verify_s, rows[i].refine_prompt, rows[i].refined) for i in chosen}
    requests = [replace(one, then=after.get(i)) for i, one in enumerate(_sampling(rows, s.samples))]
    return serve_pool(requests, s.sampler.engines, s.sampler.speed)


def _cost(
    s: Setup, work: float, sample_s: float, begin: float, ends: float, train_s: float, busy: dict[str, float],
    rows: Sequence[Row],
) -> StepCost:  # fmt: skip
    sync_s = 0.0 if s.staleness == "never" else s.sync_s
    rest = s.scheduling_s + (s.rest_s if s.placed == "timeshare" else 0.0)
    refined = float(sum(row.refined for row in rows)) if s.refiner else 0.0
    return StepCost(
        step_s=work + sync_s + rest,
        sample_s=sample_s,
        refine_s=max(0.0, ends - begin) if refined else 0.0,
        refine_ends_s=ends,
        train_s=train_s,
        sync_s=sync_s,
        rest_s=rest,
        busy_s=busy,
        sampled_tokens=float(sum(row.raw for row in rows)),
        refined_tokens=refined,
    )


def mean_cost(costs: Sequence[StepCost]) -> StepCost:
    """Field by field the mean of several draws."""
    n = len(costs)
    names = [name for name in StepCost.__dataclass_fields__ if name != "busy_s"]
    numbers = {name: sum(getattr(one, name) for one in costs) / n for name in names}
    return StepCost(**numbers, busy_s={pool: sum(one.busy_s[pool] for one in costs) / n for pool in costs[0].busy_s})


def sync_seconds(backend: str, weights_bytes: float, on_gpu: bool, adapter: bool) -> float:
    """A weight sync. Gloo copies through the host, at about a quarter of the speed."""
    if not on_gpu:
        return c.CPU_SYNC_S + weights_bytes / c.CPU_BYTES_S
    if adapter:
        return c.ADAPTER_SYNC_S
    speed = c.SYNC_BYTES_S / 4 if backend == "gloo" else c.SYNC_BYTES_S
    return c.SYNC_S + weights_bytes / speed
