"""A recorded run's own lengths and rates, in place of assumed ones.

    TimedRows, metrics of the run, its ModelledSpeeds (the model's speeds for it)  ->  calibrated()  ->  Measured

How the rates are found:

- Of each pool and step: the line of tokens against the time at which each row was done, as recorded and as the model
  has it. The ratio of the slopes is how much slower the engines are than the model says, and what is left at no tokens
  is what a request costs besides.
- Of the learner: the seconds of training that updates do not explain, by the FLOPs of the step.
- Weight sync, scheduling, verdicts: medians.

The first steps and those after an evaluation are left out by the caller. A median over the steps is what counts, so a
hiccup of the machine counts little. `Measured.error` says how far the model with these rates is from the steps that it
was made from.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import NamedTuple

from trd_ray.economics.batching import EngineRequest, serve_pool
from trd_ray.economics.engine_speed import EngineSpeed
from trd_ray.economics.learning import LearnerSpeed, LearnerWork, Trained
from trd_ray.economics.workload import Row, RunFacts

MOST_OF_UPDATES = 0.8  # of the seconds of training: the rest is left to products
FEWEST_ROWS = 4  # of a step, through which a line is drawn


class Timed(NamedTuple):
    """What one request to an engine took."""

    prompt: int
    tokens: int
    start_s: float
    seconds: float
    engine: str

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


class TimedRow(NamedTuple):
    step: int
    sampled: Timed
    refined: Timed | None
    trained: Trained | None
    verified_s: float  # how long its first verdict took

    @property
    def lengths(self) -> Row:
        after = self.refined
        return Row(self.sampled.prompt, self.sampled.tokens, after.prompt if after else 0, after.tokens if after else 0)


@dataclass(frozen=True)
class ModelledSpeeds:
    """The model's speeds for the run that was recorded."""

    sampler: EngineSpeed
    refiner: EngineSpeed
    learner: LearnerSpeed
    ranks: int


@dataclass(frozen=True)
class Measured:
    run: str
    lengths: RunFacts
    sampler: EngineSpeed | None = None  # None where the run had other models or machines
    refiner: EngineSpeed | None = None
    learner: LearnerSpeed | None = None
    sync_s: float | None = None
    scheduling_s: float | None = None
    verify_s: float | None = None
    slower: dict[str, float] | None = None  # pool -> times the seconds that the model has
    steps: int = 0
    error: float | None = None  # of the median step of that very run


def lengths_of(rows: Sequence[TimedRow], run: str) -> RunFacts:
    found = tuple(row.lengths for row in rows)
    raw = median(row.raw for row in found)
    refined = [row.refined for row in found if row.refined]
    said = f"lengths are those of {len(found):,} rows of {run}: a median of {raw:,.0f} tokens sampled"
    return RunFacts(found, said + (f" and {median(refined):,.0f} refined" if refined else ""))


def calibrated(
    rows: Sequence[TimedRow], metrics: Sequence[dict], works: dict[int, LearnerWork], base: ModelledSpeeds, run: str
) -> Measured:
    """Rates of a run of the same models on the same kind of machine. `works` are the learner's, by step."""
    steps = {line["step"] for line in metrics}
    known = [row for row in rows if row.step in steps]
    if not known or not metrics:
        return Measured(run, lengths_of(rows, run))
    sampler, times_s = _speed([[r.sampled for r in some] for some in _by_step(known)], base.sampler)
    after = [[r.refined for r in some if r.refined] for some in _by_step(known)]
    refiner, times_r = _speed(after, base.refiner)
    learner, times_l = _learner(metrics, works, base)
    return Measured(
        run=run,
        lengths=lengths_of(known, run),
        sampler=sampler,
        refiner=refiner,
        learner=learner,
        sync_s=_median(line.get("seconds/sync") for line in metrics),
        scheduling_s=_median(_rest(line) for line in metrics),
        verify_s=_median(r.refined.start_s - r.sampled.end_s for r in _last_to_refine(known)),
        slower={"sampler": times_s, "refiner": times_r, "learner": times_l},
        steps=len(steps),
    )


def _rest(line: dict) -> float | None:
    """What of a step neither work nor sync explains."""
    overhead, sync = line.get("seconds/overhead"), line.get("seconds/sync")
    return None if overhead is None or sync is None else max(0.0, overhead - sync)


def _by_step(rows: Sequence[TimedRow]) -> list[list[TimedRow]]:
    found: dict[int, list[TimedRow]] = defaultdict(list)
    for row in rows:
        found[row.step].append(row)
    return list(found.values())


def _last_to_refine(rows: Sequence[TimedRow]) -> list:
    """In each step the row that was sampled last: nothing else keeps its refinement waiting."""
    found = []
    for some in _by_step(rows):
        refined = [row for row in some if row.refined]
        if refined:
            found.append(max(refined, key=lambda row: row.sampled.end_s))
    return [row for row in found if row.refined.start_s >= row.sampled.end_s]


def _speed(steps: Sequence[Sequence[Timed | None]], base: EngineSpeed) -> tuple[EngineSpeed, float]:
    """The base's speed scaled to the recorded one, and by how much."""
    ratios, rests = [], []
    bare = replace(base, request_s=0.0)
    for step in steps:
        for some in _by_engine([one for one in step if one]).values():
            if len(some) < FEWEST_ROWS or len({one.tokens for one in some}) < 2:
                continue
            begin = min(one.start_s for one in some)
            tokens = [float(one.tokens) for one in some]
            recorded = _line(tokens, [one.end_s - begin for one in some])
            requests = [EngineRequest(one.start_s - begin, one.prompt, one.tokens) for one in some]
            modelled = _line(tokens, serve_pool(requests, 1, bare).finish_s)
            if recorded[0] > 0 and modelled[0] > 0:
                ratios.append(recorded[0] / modelled[0])
                rests.append(recorded[1] - modelled[1] * recorded[0] / modelled[0])
    if not ratios:
        return base, 1.0
    times = median(ratios)
    return replace(base.slower(times), request_s=max(0.0, median(rests))), times


def _by_engine(some: Sequence[Timed]) -> dict[str, list[Timed]]:
    found: dict[str, list[Timed]] = defaultdict(list)
    for one in some:
        found[one.engine].append(one)
    return found


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and height at 0 of the least-squares line."""
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    return slope, mean_y - slope * mean_x


def _learner(
    metrics: Sequence[dict], works: dict[int, LearnerWork], base: ModelledSpeeds
) -> tuple[LearnerSpeed, float]:
    """The FLOPs a second that a rank reached.

    Updates take what the model says, but at most MOST_OF_UPDATES of the time.
    """
    rates, seconds = [], []
    for line in metrics:
        work, took = works.get(line["step"]), line.get("seconds/train")
        if work and work.flops and took:
            updates = work.updates * (base.learner.update_s + work.optimizer_bytes / base.learner.memory_bytes_s)
            rates.append(work.flops / (base.ranks * (took - min(updates, MOST_OF_UPDATES * took))))
            seconds.append(min(updates, MOST_OF_UPDATES * took) / max(1, work.updates))
    if not rates:
        return base.learner, 1.0
    rate = median(rates)
    found = replace(base.learner, flops=rate, update_s=median(seconds), memory_bytes_s=float("inf"))
    return found, base.learner.flops / rate


def _median(values) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
