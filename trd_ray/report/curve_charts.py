"""The curves of one or several runs: every metric of every step, and what happened when.

    metrics.jsonl, evaluation/, events.jsonl  ->  curves()  ->  data that page/curves.js draws

The x axis is the number of steps that are done. Scores stand where they were measured, the base's at 0, with their
intervals. Of more than MOST_STEPS steps every second, third, ... is drawn.
"""

import math
from typing import Any

from trd_ray.report.recorded import Recorded
from trd_ray.score.stats import Score

MOST_STEPS = 2_000
DIGITS = 6
NOT_CURVES = ("step", "time_s", "version")
RESTARTS = {"start": "the run went on", "learner": "the learner's ranks were started again", "engine": "an engine"}

# (title, unit, what it says, (metric, its name in the legend)...); a chart without any of its metrics is left out.
CHARTS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (
        "Pass rate",
        "share",
        "Raw attempts and refinements of the training problems; held-out Avg@k with its interval.",
        [("y_o/passed", "raw y_o"), ("y_r/passed", "refined y_r"), ("evaluation/avg", "held-out Avg@k")],
    ),
    ("KL", "nats a token", "KL(teacher, student) over the vocabulary: falls as the student learns.", [
        ("kl/mean", "over tokens"), ("kl/row_mean", "over trajectories")]),
    ("Length", "tokens", "Mean length of attempts and refinements.", [
        ("y_o/tokens_mean", "raw y_o"), ("y_r/tokens_mean", "refined y_r")]),
    ("Entropy", "nats", "Entropy of the next token: a student's that falls to 0 has collapsed.", [
        ("student/entropy", "student"), ("teacher/entropy", "teacher")]),
    ("Likelihood", "nats a token", "Negative log-likelihood of the trained tokens.", [
        ("student/nll", "student"), ("teacher/nll", "teacher")]),
    ("Cut or without answer", "share", "Attempts and refinements that ended at the limit, or hold no answer.", [
        ("y_o/truncated", "raw cut"), ("y_r/truncated", "refined cut"),
        ("y_o/no_answer", "raw no answer"), ("y_r/no_answer", "refined no answer")]),
    ("Engine-learner gap", "log-probability, log axis", "The same tokens at the same weights: below 1e-3 in float32.", [
        ("sync/gap_mean", "mean"), ("sync/gap_max", "worst token")]),
    ("Gradient norm", "before the clip", "Far above learner.grad_clip: lower learner.lr.", [("grad_norm", "norm")]),
    ("Learning rate", "", "Warms up, then falls.", [("lr", "lr")]),
    ("Tokens a second", "while at work", "What each pool samples.", [
        ("tokens_per_s/sampler", "sampler"), ("tokens_per_s/refiner", "refiner")]),
    ("Seconds by stage", "s a step", "Wall time in which each stage had work; stages overlap.", [
        ("seconds/step", "step"), ("seconds/sample", "sample"), ("seconds/refine", "refine"),
        ("seconds/train", "train"), ("seconds/sync", "sync"), ("seconds/verify", "verify"),
        ("seconds/rest", "rest"), ("seconds/wake", "wake"), ("seconds/overhead", "overhead")]),
]  # fmt: skip
LOGARITHMIC = ("Engine-learner gap",)


def curves(runs: list[Recorded]) -> dict[str, Any] | None:
    """None where no run has a step or a score."""
    drawn = [_of_run(run) for run in runs]
    if not any(one["steps"] for one in drawn):
        return None
    measured = {name for one in drawn for name in one["metrics"]}
    charts = [
        {"title": title, "unit": unit, "explains": explains, "log": title in LOGARITHMIC}
        | {"series": [{"name": name, "label": label} for name, label in series if name in measured]}
        for title, unit, explains, series in CHARTS
        if any(name in measured for name, _ in series)
    ]
    return {"runs": drawn, "charts": charts, "names": sorted(measured)}


def _of_run(run: Recorded) -> dict[str, Any]:
    every = max(1, math.ceil(len(run.metrics) / MOST_STEPS))
    lines = run.metrics[::every] if every > 1 else run.metrics
    scores = {"evaluation": run.evaluations} | {f"evaluation/{name}": found for name, found in run.sets.items()}
    steps = sorted({line["step"] for line in lines} | {s.step for found in scores.values() for s in found})
    at = {step: i for i, step in enumerate(steps)}
    names = sorted({name for line in lines for name in line if name not in NOT_CURVES})
    metrics: dict[str, list[float | None]] = {}
    for name in names:
        values: list[float | None] = [None] * len(steps)
        for line in lines:
            if isinstance(value := line.get(name), int | float):
                values[at[line["step"]]] = rounded(value)
        if any(value is not None for value in values):
            metrics[name] = values
    intervals: dict[str, list[list[float | None]]] = {}
    for prefix, found in scores.items():
        if found:
            metrics[f"{prefix}/avg"], intervals[f"{prefix}/avg"] = _scored(found, at, len(steps))
    return {
        "label": run.label, "steps": steps, "metrics": metrics, "intervals": intervals, "marks": marks(run),
        "every": every,
    }  # fmt: skip


def _scored(found: list[Score], at: dict[int, int], n: int) -> tuple[list[float | None], list[list[float | None]]]:
    values: list[float | None] = [None] * n
    ends: list[list[float | None]] = [[None] * n, [None] * n]
    for score in found:
        e = score.scores[f"avg@{score.samples}"]
        values[at[score.step]], ends[0][at[score.step]], ends[1][at[score.step]] = e.value, e.low, e.high
    return values, ends


def marks(run: Recorded) -> list[dict[str, Any]]:
    """What the curves are marked with, in order: evaluations, checkpoints, restarts; `at` is a number of steps."""
    found = [{"kind": "evaluation", "at": score.step, "said": f"{score.name} evaluated"} for score in run.evaluations]
    written = {event["step"] for event in run.events if event["kind"] == "checkpoint" and "step" in event}
    written |= {step for step, _ in run.directory.checkpoints()}
    found += [{"kind": "checkpoint", "at": step, "said": f"checkpoint {step}"} for step in sorted(written)]
    first = True
    for event in run.events:
        if event["kind"] == "start" and first:
            first = False
            continue
        if event["kind"] in RESTARTS and (at := run.step_at(event["when"])) is not None:
            found.append({"kind": "restart", "at": at, "said": event.get("said") or RESTARTS[event["kind"]]})
    return sorted(found, key=lambda mark: mark["at"])


def rounded(value: float) -> float:
    """With DIGITS digits, which is more than a curve shows; whole numbers stay."""
    if isinstance(value, bool | int) or not math.isfinite(value) or value == int(value):
        return value
    return float(f"{value:.{DIGITS}g}")
