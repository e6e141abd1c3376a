"""A recorded run's own lengths and rates, in place of assumed ones.

    TimedRows, metrics of the run, its ModelledSpeeds (the model's speeds for it)  ->  calibrated()  ->  Measured

How the rates are found:

- Of each pool and step: the line of tokens against the time at which each row was done, as recorded and as the model
  has it. The ratio of the slopes is how much slower the engines are than the model says, and what is left at no tokens
  is what a request costs besides.
- Of the learner: the seconds of training that updates do not explain, by the FLOPs of the step.
- Weight sync, scheduling, GPUs that change hands, verdicts: medians.
- Engines that also refine have both kinds of requests side by side, in the model as in the run, and one rate for both.
  A refiner that had nothing to do is as much slower than the model as the sampler.

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
TRIES, NEAR = 8, 0.01  # of a scale, and how near it is to the last one when it is found


class Timed(NamedTuple):
    """What one request to an engine took."""

    prompt: int
    tokens: int
    start_s: float
    seconds: float
    engine: str
    others: tuple[int, ...] = ()  # tokens of further answers to it, where there were several
    kept: int = 0  # of the prompt, that the answers begin with

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds

    @property
    def longest(self) -> int:
        return max(self.tokens, *self.others, 0)

    def after(self, begin: float) -> EngineRequest:
        return EngineRequest(self.start_s - begin, self.prompt, self.tokens, others=self.others)


class TimedRow(NamedTuple):
    step: int
    sampled: Timed
    refined: Timed | None
    trained: Trained | None
    verified_s: float  # how long its verdicts took, one after the other

    @property
    def lengths(self) -> Row:
        raw, after = self.sampled, self.refined
        alone = Row(raw.prompt, raw.tokens, 0, 0)
        if not after:
            return alone
        return alone._replace(refine_prompt=after.prompt, refined=after.tokens, others=after.others, kept=after.kept)


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
    turn_s: float | None = None  # in which GPUs changed hands; None where nobody took turns
    verify_s: float | None = None
    verdicts_s: float | None = None  # of the verdicts of a row
    slower: dict[str, float] | None = None  # pool -> times the seconds that the model has
    steps: int = 0
    error: float | None = None  # of the median step of that very run
    differs: str = ""  # why its rates are not taken: what it had in place of what is estimated


def lengths_of(rows: Sequence[TimedRow], run: str) -> RunFacts:
    found = tuple(row.lengths for row in rows)
    raw = median(row.raw for row in found)
    refined = [row.refined for row in found if row.refined]
    said = f"lengths are those of {len(found):,} rows of {run}: a median of {raw:,.0f} tokens sampled"
    return RunFacts(found, said + (f" and {median(refined):,.0f} refined" if refined else ""))


def calibrated(
    rows: Sequence[TimedRow],
    metrics: Sequence[dict],
    works: dict[int, LearnerWork],
    base: ModelledSpeeds,
    run: str,
    corpus: bool = False,
) -> Measured:
    """Rates of a run of the same models on the same kind of machine. `works` are the learner's, by step.

    On a `corpus` the learner alone worked: the times of its rows are those of the run that made them.
    """
    numbers = {line["step"] for line in metrics}
    known = [row for row in rows if row.step in numbers]
    if not known or not metrics:
        return Measured(run, lengths_of(rows, run))
    steps = [] if corpus else _by_step(known)
    sampled = [[r.sampled for r in some] for some in steps]
    refined = [[r.refined for r in some if r.refined] for some in steps]
    one_pool = {r.engine for some in refined for r in some} <= {r.engine for some in sampled for r in some}
    sampler, times_s = _speed(sampled, base.sampler, beside=refined if one_pool else None)
    if one_pool:  # also where nothing was refined
        refiner, times_r = replace(base.refiner.slower(times_s), request_s=sampler.request_s), times_s
    else:
        refiner, times_r = _speed(refined, base.refiner)
    learner, times_l = _learner(metrics, works, base)
    return Measured(
        run=run,
        lengths=lengths_of(known, run),
        sampler=sampler,
        refiner=refiner,
        learner=learner,
        sync_s=None if corpus else _median(line.get("seconds/sync") for line in metrics),
        scheduling_s=None if corpus else _median(_rest(line) for line in metrics),
        turn_s=_median(turn_seconds_of(line) for line in metrics),
        verify_s=_median(r.refined.start_s - r.sampled.end_s for r in _last_to_refine(steps)),
        verdicts_s=fmean(row.verified_s for row in known),
        slower={"sampler": times_s, "refiner": times_r, "learner": times_l},
        steps=len(numbers),
    )


def _rest(line: dict) -> float | None:
    """What of a step neither work, nor sync, nor GPUs that changed hands explain."""
    overhead, sync = line.get("seconds/overhead"), line.get("seconds/sync")
    return None if overhead is None or sync is None else max(0.0, overhead - sync - (turn_seconds_of(line) or 0.0))


def turn_seconds_of(line: dict) -> float | None:
    """In which GPUs went from the engines to the learner and back; None where nobody takes turns."""
    known = [line[name] for name in ("seconds/rest", "seconds/wake") if line.get(name) is not None]
    return sum(known) if known else None


def _by_step(rows: Sequence[TimedRow]) -> list[list[TimedRow]]:
    found: dict[int, list[TimedRow]] = defaultdict(list)
    for row in rows:
        found[row.step].append(row)
    return list(found.values())


def _last_to_refine(steps: Sequence[Sequence[TimedRow]]) -> list:
    """In each step the row that was sampled last: nothing else keeps its refinement waiting."""
    found = []
    for some in steps:
        refined = [row for row in some if row.refined]
        if refined:
            found.append(max(refined, key=lambda row: row.sampled.end_s))
    return [row for row in found if row.refined.start_s >= row.sampled.end_s]


def _speed(
    steps: Sequence[Sequence[Timed]], base: EngineSpeed, beside: Sequence[Sequence[Timed]] | None = None
) -> tuple[EngineSpeed, float]:
    """The base's speed scaled to the recorded one, and by how much. `beside` is what the same engines had besides.

    Requests come when they came in the run. So how many are served side by side depends on the speed, and the scale is
    looked for until the model with it is as fast as the run.
    """
    times, rest = 1.0, base.request_s
    for _ in range(TRIES):
        found = _ratios(steps, replace(base.slower(times), request_s=0.0), beside)
        if not found:
            break
        ratio, rest = (median(values) for values in zip(*found, strict=True))
        times *= ratio
        if abs(ratio - 1) < NEAR:
            break
    return replace(base.slower(times), request_s=max(0.0, rest)), times


def _ratios(
    steps: Sequence[Sequence[Timed]], speed: EngineSpeed, beside: Sequence[Sequence[Timed]] | None
) -> list[tuple[float, float]]:
    """For each step and engine: times the seconds a token that the speed has, and the seconds at no tokens besides."""
    found = []
    for i, step in enumerate(steps):
        more = _by_engine(beside[i]) if beside else {}
        for engine, some in _by_engine(step).items():
            if len(some) < FEWEST_ROWS or len({one.longest for one in some}) < 2:
                continue
            begin = min(one.start_s for one in some)
            tokens = [float(one.longest) for one in some]
            recorded = _line(tokens, [one.end_s - begin for one in some])
            requests = [one.after(begin) for one in [*some, *more.get(engine, [])]]
            modelled = _line(tokens, serve_pool(requests, 1, speed).finish_s[: len(some)])
            if recorded[0] > 0 and modelled[0] > 0:
                ratio = recorded[0] / modelled[0]
                found.append((ratio, recorded[1] - modelled[1] * ratio))
    return found


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
