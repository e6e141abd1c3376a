"""What a run has shown up to a step: its newest lines of metrics, the first ones, and what happened beside them.

    add(step, metrics, events)  ->  pooled("truncated", "y_o"), values("kl/mean", 10), events("engine", 20), ...

A metric that is not a finite number counts as absent; `odd` names it. metrics.jsonl has null in its place.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from trd_ray.alarms import thresholds
from trd_ray.alarms.around import Around

KEPT_STEPS = 256  # no condition looks further back but by the sums that are kept


class StepLine(NamedTuple):
    step: int
    metrics: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]  # since the line before

    def get(self, name: str) -> float | None:
        value = self.metrics.get(name)
        return float(value) if value is not None and _is_finite(value) else None


class Share(NamedTuple):
    """A count of rows over the newest steps."""

    count: int
    n: int
    first: int
    last: int

    @property
    def value(self) -> float:
        return self.count / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{self.count} of {self.n} ({self.value:.0%})"

    @property
    def where(self) -> str:
        return f"step {self.last}" if self.first == self.last else f"steps {self.first} to {self.last}"


class History:
    def __init__(self, around: Around):
        self.around = around
        self.lines: deque[StepLine] = deque(maxlen=KEPT_STEPS)
        self.first: list[StepLine] = []  # the first BASELINE_STEPS of the run
        self.bad_rows = 0
        self.kl: dict[int, float] = {}
        self.scores: list[Mapping[str, Any]] = []  # events of evaluations, in order
        self.lowest_kl = math.inf  # of the medians over KL_RISES_STEPS, but for the newest
        self.best_rate = 0.0  # tokens a second: the best of the medians over PACE_STEPS

    def add(self, step: int, metrics: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()) -> None:
        t = thresholds
        if before := self.values("kl/mean", t.KL_RISES_STEPS):
            self.lowest_kl = min(self.lowest_kl, median(before))
        if before := self.values("tokens_per_s/sampler", t.PACE_STEPS):
            self.best_rate = max(self.best_rate, median(before))
        line = StepLine(step, metrics, list(events))
        self.lines.append(line)
        if len(self.first) < t.BASELINE_STEPS:
            self.first.append(line)
        self.bad_rows += int(line.get("dropped/bad row") or 0)
        if (kl := line.get("kl/mean")) is not None:
            self.kl[step] = kl
        self.scores += [event for event in events if event.get("kind") == "evaluation"]

    @property
    def last(self) -> StepLine:
        return self.lines[-1]

    def newest(self, count: int) -> list[StepLine]:
        """The newest `count` lines, the oldest first."""
        return list(self.lines)[-count:]

    def values(self, name: str, count: int) -> list[float]:
        """The metric in each of the newest `count` steps; none at all unless every one of them has it."""
        found = [value for line in self.newest(count) if (value := line.get(name)) is not None]
        return found if len(found) == count else []

    def before(self, name: str, count: int) -> list[float]:
        """The same, of the steps before the newest one."""
        found = [value for line in self.newest(count + 1)[:-1] if (value := line.get(name)) is not None]
        return found if len(found) == count else []

    def at_start(self, name: str) -> float | None:
        """The median over the first steps of the run, once they are over."""
        found = [value for line in self.first if (value := line.get(name)) is not None]
        return median(found) if len(found) == thresholds.BASELINE_STEPS < len(self.lines) else None

    def events(self, kind: str, count: int = 1) -> list[Mapping[str, Any]]:
        """The events of a kind in the newest `count` steps, in order."""
        return [event for line in self.newest(count) for event in line.events if event.get("kind") == kind]

    def odd(self, *names: str) -> list[str]:
        """Those of the metrics that the newest step has, but not as a finite number."""
        return [name for name in names if name in self.last.metrics and not _is_finite(self.last.metrics[name])]

    # Rows

    def pooled(self, share: str, y: str, rows: int = thresholds.WINDOW_ROWS) -> Share:
        """How many trajectories a metric y/share counts, over the newest steps with so many rows."""
        return self.counted(lambda line: (line.get(f"{y}/{share}"), trajectories(line, y)), rows)

    def counted(self, of: Any, rows: int = thresholds.WINDOW_ROWS, most_steps: int = thresholds.WINDOW_STEPS) -> Share:
        """The same of what `of(line)` says: a share of how many rows; a step whose share is None is left out."""
        count = n = 0
        last = first = self.last.step if self.lines else 0
        for line in reversed(self.newest(most_steps)):
            share, of_step = of(line)
            if share is not None and of_step:
                count += round(share * of_step)
                n += of_step
                first = line.step
            if n >= rows:
                break
        return Share(count, n, first, last)

    def cells(self) -> tuple[Share, Share]:
        """(broken, repaired): of the refinements that changed a verdict, over the newest steps with HARM_ROWS rows."""
        broken = self.counted(lambda line: _cell(line, "ledger/pass_fail"), thresholds.HARM_ROWS)
        repaired = self.counted(lambda line: _cell(line, "ledger/fail_pass"), thresholds.HARM_ROWS)
        return broken, repaired


def trajectories(line: StepLine, y: str) -> int:
    """How many trajectories of this kind the shares of a step are of, as far as its metrics say."""
    if y == "y_r" and (n := sum(line.get(f"ledger/{o}_{r}") or 0 for o in ("pass", "fail") for r in ("pass", "fail"))):
        return int(n)
    return int((line.get("rollouts") or 0) - (line.get("dropped/bad row") or 0))


def dropped(line: StepLine) -> Iterator[tuple[str, int]]:
    """Why rows of the step did not train, and how many."""
    for name in line.metrics:
        if name.startswith("dropped/") and (count := line.get(name)):
            yield name.removeprefix("dropped/"), int(count)


def _cell(line: StepLine, name: str) -> tuple[float | None, int]:
    count, n = line.get(name), trajectories(line, "y_r")
    return (None if count is None or not n else count / n), n


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
