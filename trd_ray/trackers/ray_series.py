"""The run's own gauges and counters among Ray's metrics, which Prometheus scrapes at every node of a cluster.

    a step's metrics, the pools' figures  ->  RunSeries  ->  ray.util.metrics  ->  ray_trd_* at the metrics export port

SERIES is all of them. Each has the tag `run`, the recipe's name. Ray drops a gauge that nobody has set for some 20 s,
and a step may take minutes; so every look of the driver at its pools sets all of them again. After the run they are
gone. Nothing here needs Ray to be there, and nothing here ends a run.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trd_ray.trackers.measured import numbers

AGAIN_S = 3.0
STAGES = ("step", "wait", "sample", "refine", "verify", "train", "sync", "overhead")
ALARM = "alarm/"


@dataclass(frozen=True)
class Series:
    """A metric of Prometheus. `of` says which metric of a step each value of its tag is, or which figure of a pool."""

    explains: str
    tag: str = ""  # besides run
    of: Mapping[str, str] | str = ""
    counts: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        return ("run", self.tag) if self.tag else ("run",)


def _raw_and_refined(metric: str) -> dict[str, str]:
    return {"raw": f"y_o/{metric}", "refined": f"y_r/{metric}"}


OF_STEPS = {
    "trd_step": Series("steps that are recorded", of="step"),
    "trd_pass_rate": Series("share of the step's responses that pass", "of", _raw_and_refined("passed")),
    "trd_response_tokens": Series("mean length of the step's responses", "of", _raw_and_refined("tokens_mean")),
    "trd_truncated": Series("share of responses cut at their limit", "of", _raw_and_refined("truncated")),
    "trd_kl": Series("KL(teacher, student) a token, in nats", of="kl/mean"),
    "trd_entropy": Series("entropy of the next token, in nats", "of", {
        "student": "student/entropy", "teacher": "teacher/entropy",
    }),
    "trd_loss": Series("what is minimised", of="loss"),
    "trd_grad_norm": Series("norm of the gradient before it is clipped", of="grad_norm"),
    "trd_lr": Series("learning rate", of="lr"),
    "trd_gap": Series("difference of log-probabilities between engine and learner", "of", {
        "mean": "sync/gap_mean", "max": "sync/gap_max",
    }),
    "trd_staleness": Series("policy versions between a row and its step", "of", {
        "mean": "staleness/mean", "max": "staleness/max",
    }),
    "trd_evaluation": Series("score of the held-out problems", "of", {
        "avg": "evaluation/avg", "pass": "evaluation/pass",
    }),
    "trd_stage_seconds": Series("seconds of the step, by stage", "stage", {s: f"seconds/{s}" for s in STAGES}),
}  # fmt: skip
OF_POOLS = {
    "trd_pool_tokens_per_second": Series("tokens a second of the pool, while it goes on", "pool", "tokens_per_s"),
    "trd_pool_queue": Series("requests that wait in the pool", "pool", "waiting"),
    "trd_pool_running": Series("requests under way in the pool", "pool", "running"),
    "trd_pool_busy": Series("share of the pool's places that are taken, over some 30 s", "pool", "busy"),
    "trd_pool_engines": Series("engines of the pool", "pool", "engines"),
    "trd_pool_engines_serving": Series("engines of the pool that serve", "pool", "up"),
}
COUNTERS = {
    "trd_rollouts": Series("rows that were recorded", of="rollouts", counts=True),
    "trd_rows_trained": Series("rows that were trained on", of="trained_rows", counts=True),
    "trd_tokens_trained": Series("response tokens in the loss", of="trained_tokens", counts=True),
    "trd_learner_restarts": Series("restarts of the learner's ranks", of="learner/restarts", counts=True),
    "trd_pool_tokens": Series("tokens that the pool has made", "pool", "tokens", counts=True),
    "trd_pool_restarts": Series("engines that started again", "pool", "restarts", counts=True),
}
ALARMS = {"trd_alarm": Series("1 while the alarm lasts", "alarm")}
SERIES = OF_STEPS | OF_POOLS | COUNTERS | ALARMS


def name_in_prometheus(series: str) -> str:
    return f"ray_{series}{'_total' if SERIES[series].counts else ''}"


class RunSeries:
    def __init__(self, run: str):
        self.run = run
        self._made: dict[str, Any] = {}  # Ray's own, by name
        self._last: dict[tuple[str, str], float] = {}  # what each gauge shows, by name and value of its tag
        self._counted: dict[tuple[str, str], float] = {}  # what a pool's process had counted when it was asked last
        self._set = -math.inf

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step is recorded; steps count from 1. What it did not measure is shown as it was, but for alarms."""
        found = numbers(metrics) | {"step": step}
        for name, series in OF_STEPS.items():
            for value, metric in ({"": series.of} if isinstance(series.of, str) else series.of).items():
                if metric in found:
                    self._last[name, value] = found[metric]
        for name, series in COUNTERS.items():
            if not series.tag and found.get(str(series.of), 0) > 0:
                self._count(name, "", found[str(series.of)])
        self._alarms({name.removeprefix(ALARM) for name, on in found.items() if name.startswith(ALARM) and on})
        self._show()

    def pools(self, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """What each pool does now (session.pool_figures); may be called at any rate."""
        for pool, found in figures.items():
            for name, series in OF_POOLS.items():
                if isinstance(value := found.get(str(series.of)), int | float):
                    self._last[name, pool] = value
            for name, series in COUNTERS.items():
                if series.tag and isinstance(value := found.get(str(series.of)), int | float):
                    before = self._counted.get((name, pool), value)  # a pool may have worked for others before
                    self._counted[name, pool] = value
                    if new := value - before if value >= before else value:  # another process counts from 0
                        self._count(name, pool, new)
        if time.monotonic() - self._set > AGAIN_S:
            self._show()

    def _alarms(self, on: set[str]) -> None:
        for name, alarm in list(self._last):
            if name == "trd_alarm":
                self._last[name, alarm] = 0
        for alarm in on:
            self._last["trd_alarm", alarm] = 1

    def _show(self) -> None:
        self._set = time.monotonic()
        for (name, value), number in self._last.items():
            with contextlib.suppress(Exception):  # as where Ray is of another version, or not there
                self._series(name).set(number, self._tags(name, value))

    def _count(self, name: str, value: str, new: float) -> None:
        with contextlib.suppress(Exception):
            self._series(name).inc(new, self._tags(name, value))

    def _tags(self, name: str, value: str) -> dict[str, str]:
        tag = SERIES[name].tag
        return {"run": self.run} | ({tag: value} if tag else {})

    def _series(self, name: str) -> Any:
        if name not in self._made:
            from ray.util.metrics import Counter, Gauge

            series = SERIES[name]
            self._made[name] = (Counter if series.counts else Gauge)(name, series.explains, series.tags)
        return self._made[name]
