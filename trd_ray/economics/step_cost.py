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
    a CPU                besides, the work of all processes that share its cores
    in turn              (timeshare) sampling and refining on all GPUs, rest, training on all, waking, sync

In turn, one pool refines what it sampled as a shared one does. Two models have an engine each on every GPU, which take
turns while both have work; if a block is all that an engine samples, one comes after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trd_ray.economics import constants as c
from trd_ray.economics.batching import EngineRequest, PoolServed, serve_beside, serve_pool
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
    block: int  # rows that are asked of an engine in one call and go on together
    samples: int  # rollouts of a problem, whose prompt is read once
    sync_s: float
    scheduling_s: float
    verify_s: float  # of a verdict, on the way from sampling to refining
    rows_a_second: float
    reads_again: bool  # rollouts under way lose their keys and values at a sync
    turn_s: float = 0.0  # timeshare: from engines to learner and back
    learner_cores: float = 1.0  # threads of all ranks
    cores: float = math.inf  # that all processes share, where there are no GPUs
    share: bool = False  # pools and learner have shares of the same GPUs: none is fast while another works


@dataclass(frozen=True)
class StepCost:
    step_s: float
    sample_s: float  # until the step's last rollout is sampled
    refine_s: float  # from the first request of refining to the last answer
    refine_ends_s: float  # after the step's first rollout began
    train_s: float  # with the probe of the weights
    sync_s: float
    turn_s: float  # timeshare: engines rest and wake
    rest_s: float  # scheduling
    busy_s: dict[str, float]  # seconds at work in a step, of each pool's mean engine and of a rank
    sampled_tokens: float
    refined_tokens: float

    def busy(self, pool: str) -> float:
        return min(1.0, self.busy_s[pool] / self.step_s)


def step_cost(setup: Setup, rows: Sequence[Row], train_s: float, earlier: Sequence[Row] = ()) -> StepCost:
    """One step of these rows. `earlier` are those of the step before, which are under way with them where k >= 1."""
    if setup.placed == "separate":
        found = _separate(setup, rows, train_s, earlier)
    elif setup.placed == "timeshare" and setup.refiner is not setup.sampler and math.isfinite(setup.cores):
        # Engines of a CPU have cores of their own, and are at work side by side until the learner's turn.
        sync_s = 0.0 if setup.staleness == "never" else setup.sync_s
        found = _separate(replace(setup, staleness=0, sync_s=sync_s), rows, train_s, ())
    else:
        found = _together(setup, rows, train_s, earlier)
    least = len(rows) / setup.rows_a_second
    return found if found.step_s >= least else replace(found, step_s=least, rest_s=found.rest_s + least - found.step_s)


def of_a_corpus(setup: Setup, train_s: float, rows: Sequence[Row]) -> StepCost:
    """A step of rows that are there already: training alone, without weights for any engine.

    Engines that an evaluation needs wait for it.
    """
    scheduling_s = c.CORPUS_SHARE * setup.scheduling_s
    alone = replace(setup, staleness="never", refiner=None, turn_s=0.0, scheduling_s=scheduling_s)
    found = _cost(alone, train_s, 0.0, 0.0, 0.0, train_s, {"sampler": 0.0, "learner": train_s}, rows)
    return replace(found, sampled_tokens=0.0)


def _sampling(rows: Sequence[Row], samples: int) -> list[EngineRequest]:
    return [EngineRequest(0.0, row.prompt, row.raw, row.prompt if i % samples else 0) for i, row in enumerate(rows)]


def _refined(rows: Sequence[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if row.refine_prompt]


def refinements(row: Row, arrives_s: float) -> EngineRequest:
    """The request for a row's refinements, which are given side by side."""
    return EngineRequest(arrives_s, row.refine_prompt, row.refined, others=row.others)


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
        requests = [refinements(rows[i], on[i] + s.verify_s) for i in chosen]
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
    requests = [refinements(row, 0.0) for row in rows if row.refine_prompt]
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
    if s.placed == "timeshare" and s.refiner and s.refiner is not s.sampler:
        return _two_in_turn(s, rows, train_s)
    chosen = set(_refined(rows)) if s.refiner else set()
    k = s.staleness
    served = _both(s, rows, chosen)
    S = max(served.first_s, default=0.0)
    begin = min((served.first_s[i] for i in chosen), default=0.0)
    ends = served.end_s + s.verify_s
    busy = {"sampler": served.mean_busy_s, "learner": train_s}
    if s.placed == "timeshare" or k == 0:
        work = ends + train_s
    else:
        if not s.drains or k == "never":
            more = [*rows, *(earlier or rows)]
            also = {i for i, row in enumerate(more) if row.refine_prompt} if s.refiner else set()
            busy["sampler"] = _both(s, more, also).mean_busy_s * len(rows) / len(more)
        least = (ends + train_s) / (k + 1) if k != "never" else 0.0
        work = max(least, train_s, busy["sampler"], S if s.drains and k != "never" else 0.0)
    return _cost(s, work, S, begin, ends, train_s, busy, rows)


def _two_in_turn(s: Setup, rows: Sequence[Row], train_s: float) -> StepCost:
    """timeshare with two models: both have an engine on every GPU, awake until the step's rows are refined."""
    assert s.refiner
    chosen = _refined(rows)
    after = {i: refinements(rows[i], s.verify_s) for i in chosen}
    requests = [replace(one, then=after.get(i)) for i, one in enumerate(_sampling(rows, s.samples))]
    engines = min(s.sampler.engines, s.refiner.engines)
    sampled, refined = serve_beside(requests, engines, s.sampler.speed, s.refiner.speed, s.block)
    begin = min((sampled.finish_s[i] for i in chosen), default=0.0)
    ends = max(sampled.end_s, refined.end_s) + s.verify_s
    busy = {"sampler": sampled.mean_busy_s, "refiner": refined.mean_busy_s, "learner": train_s}
    return _cost(s, ends + train_s, sampled.end_s, begin, ends, train_s, busy, rows)


def _both(s: Setup, rows: Sequence[Row], chosen: set[int]) -> PoolServed:
    after = {i: refinements(rows[i], s.verify_s) for i in chosen}
    requests = [replace(one, then=after.get(i)) for i, one in enumerate(_sampling(rows, s.samples))]
    return serve_pool(requests, s.sampler.engines, s.sampler.speed)


def _cost(
    s: Setup, work: float, sample_s: float, begin: float, ends: float, train_s: float, busy: dict[str, float],
    rows: Sequence[Row],
) -> StepCost:  # fmt: skip
    sync_s = 0.0 if s.staleness == "never" else s.sync_s
    turn_s = s.turn_s if s.placed == "timeshare" else 0.0
    refined = float(sum(row.all_refined for row in rows)) if s.refiner else 0.0
    return StepCost(
        step_s=max(work, _on_cores(s, busy)) + sync_s + turn_s + s.scheduling_s,
        sample_s=sample_s,
        refine_s=max(0.0, ends - begin) if refined else 0.0,
        refine_ends_s=ends,
        train_s=train_s,
        sync_s=sync_s,
        turn_s=turn_s,
        rest_s=s.scheduling_s,
        busy_s=busy,
        sampled_tokens=float(sum(row.raw for row in rows)),
        refined_tokens=refined,
    )


def _on_cores(s: Setup, busy: dict[str, float]) -> float:
    """Seconds in which a CPU's cores do the work of all processes; 0 where there are GPUs."""
    if math.isinf(s.cores):
        return 0.0
    engines = {"sampler": s.sampler.engines, "refiner": s.refiner.engines if s.refiner else 0}
    wanted = {name: c.CPU_ENGINE_CORES * count for name, count in engines.items()} | {"learner": s.learner_cores}
    at_work_s = sum(busy_s * min(wanted[name], s.cores) for name, busy_s in busy.items())
    control_s = c.CPU_CONTROL_S if busy["sampler"] else 0.0  # a corpus has no stream
    return (at_work_s + control_s) / s.cores


def mean_cost(costs: Sequence[StepCost]) -> StepCost:
    """Field by field the mean of several draws."""
    n = len(costs)
    names = [name for name in StepCost.__dataclass_fields__ if name != "busy_s"]
    numbers = {name: sum(getattr(one, name) for one in costs) / n for name in names}
    return StepCost(**numbers, busy_s={pool: sum(one.busy_s[pool] for one in costs) / n for pool in costs[0].busy_s})


def sync_seconds(backend: str, sent_bytes: float, on_gpu: bool) -> float:
    """A sync of so many bytes: the whole weights, or an adapter's, which goes by the host as gloo's tensors do."""
    if not on_gpu:
        return c.CPU_SYNC_S + sent_bytes / c.CPU_BYTES_S
    return c.SYNC_S + sent_bytes / (c.HOST_SYNC_BYTES_S if backend in ("gloo", "adapter") else c.SYNC_BYTES_S)


def turn_seconds(gpu: c.Gpu, kept_bytes: float, learner_bytes: float) -> float:
    """timeshare: what engines and learner take to change places on a GPU, there and back.

    `kept_bytes` are weights of engines that rest on the host, `learner_bytes` what the learner puts there meanwhile.
    """
    pinned, pageable = gpu.host_bytes_s * c.PINNED_SHARE, min(gpu.host_bytes_s, c.PAGEABLE_BYTES_S)
    return c.REST_S + c.WAKE_S + 2 * (kept_bytes / pinned + learner_bytes / pageable)
