"""A recorded run beside what the model of its costs says: for summary.md, and for estimates of other runs (--like).

    run directory  ->  section()   ->  predicted beside measured: seconds, MFU of the learner, idle share of every pool
                   ->  measured()  ->  Measured: the run's lengths and rates, and how far the model is from it with them

The prediction has the run's own lengths and the constants of its machine. Steps are the steady ones, as for the bound.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean, median

from trd_ray.config import Recipe, role_of, stored
from trd_ray.economics.calibration import Measured, TimedRow, calibrated, lengths_of, turn_seconds_of
from trd_ray.economics.case import Case
from trd_ray.economics.run_cost import RunCost, base_of, run_cost, work_of
from trd_ray.errors import UserError
from trd_ray.known_models import facts_of_recipe
from trd_ray.preflight import placement
from trd_ray.preflight.machines import Machine, Seen, with_gpus
from trd_ray.record import bounds
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import union_seconds
from trd_ray.record.markdown import table
from trd_ray.record.timed_rows import timed_rows

ALWAYS = (-math.inf, math.inf)


def case_of(directory: RunDirectory, recipe: Recipe) -> Case:
    """The run as it was placed, on GPUs of the kind that its machine has. Raises UserError where models are unknown."""
    student, teachers = facts_of_recipe(recipe)
    starts = json.loads((directory.path / "environment.json").read_text())
    machine = _machine(starts[-1])
    if machine.gpus:  # of a cluster only the driver's node is recorded: as many of the same as the run had
        specs = placement.resources(recipe, True).values()
        machine = replace(machine, gpus=max(machine.gpus, round(sum(s.replicas * s.gpus for s in specs) + 0.49)))
    placed = placement.plan(recipe, student, teachers, [machine])
    return Case(recipe, student, teachers, placed, steps=recipe.steps)


def _machine(start: dict) -> Machine:
    seen = []
    for line in start.get("gpus") or []:  # "NVIDIA H100 80GB HBM3, 81559 MiB"
        name, _, memory = line.rpartition(",")
        seen.append((name.strip().removeprefix("NVIDIA "), float(memory.split()[0]) / 1024))
    cpus = float((start.get("cpu") or {}).get("usable") or 1)
    return with_gpus(Machine("the run's", cpus), len(seen), Seen(tuple(seen), "cuda" if seen else "cpu"))


def steady(recipe: Recipe, metrics: Sequence[dict]) -> list[dict]:
    """Lines of steps that had all of a step's work."""
    k = recipe.stream.max_staleness
    found = bounds.steady(metrics, 1) if k == "never" else bounds.steady(metrics, k, recipe.steps)
    return [line for line in found if line.get("seconds/step") is not None]


def measured(directory: RunDirectory, of: Case | None = None) -> Measured:
    """The run's lengths, and its rates where `of` is planned for the same models on the same kind of machine.

    Raises UserError for a run without timed rows.
    """
    recipe = stored(directory.path / "recipe.yaml")
    name = directory.path.name
    rows = timed_rows(directory.read_rows())
    if not rows:
        raise UserError(f"--like {directory.path}: none of its rows says how long its sampling took; name another run")
    lines = steady(recipe, directory.read_metrics())
    if of is not None and (differs := _other_models(recipe, of.recipe)):
        return Measured(name, lengths_of(rows, name), differs=differs)
    case = case_of(directory, recipe)
    if of is not None and _kind(case) != _kind(of):
        differs = f"it ran on {_kind(case)}, this is for {_kind(of)}"
        return Measured(name, lengths_of(rows, name), differs=differs)
    corpus = recipe.data.source == "corpus"
    found = calibrated(rows, lines, _works(case, rows), base_of(case), name, corpus)
    if not lines or not found.steps:
        return found
    again = run_cost(replace(case, measured=found))
    took = median(line["seconds/step"] for line in lines)
    return replace(found, error=abs(again.step.step_s / took - 1))


def _other_models(one: Recipe, other: Recipe) -> str:
    """What models the one has in place of the other's; "" where rates of the one are rates of the other."""

    def models(recipe: Recipe) -> tuple[str, str]:
        taught_by = {by.teacher_path for by in recipe.by_teacher.values()}
        return recipe.student.path, ", ".join(sorted(taught_by))

    had, has = models(one), models(other)
    if had == has:
        return ""
    return f"it trained {had[0]}, taught by {had[1]}, this trains {has[0]}, taught by {has[1]}"


def _kind(case: Case) -> str:
    """The kind of machine whose rates are the same."""
    return case.gpu[0].name if case.on_gpu else "a CPU"


def _works(case: Case, rows: Iterable[TimedRow]) -> dict:
    by_step = defaultdict(list)
    for row in rows:
        if row.trained:
            by_step[row.step].append(row.trained)
    return {step: work_of(case, some) for step, some in by_step.items()}


def section(directory: RunDirectory, recipe: Recipe, metrics: Sequence[dict]) -> str:
    """The table of summary.md; "" where nothing was timed, or where a model is not known."""
    lines = steady(recipe, metrics)
    if not lines:
        return ""
    rows = [row for row in timed_rows(directory.read_rows()) if row.step in {line["step"] for line in lines}]
    if not rows:
        return ""
    try:
        case = case_of(directory, recipe)
    except UserError:
        return ""
    own = run_cost(replace(case, measured=Measured(directory.path.name, lengths_of(rows, directory.path.name))))
    found = [["", "predicted", "measured"], *_seconds(own, lines), *_learner(case, own, rows, lines)]
    if recipe.data.source == "corpus":  # its rows' times are those of the run that made them
        found += _idle(case, own, [], lines)
    else:
        found += _idle(case, own, rows, lines)
    note = (
        f"Medians of {len(lines)} steady steps. Predicted is what a model of engines and learner says of "
        f"{own.machine}, with the lengths of this run; nothing of it was fitted to the run."
    )
    if recipe.takes_turns:
        note += " Engines and learner have the same machine in turn, so each is idle while another works."
    return f"{table(found)}\n\n{note}{_as_it_was_said(case)}"


def _seconds(own: RunCost, lines: Sequence[dict]) -> list[list[str]]:
    step = own.step
    names = {
        "step": step.step_s,
        "sample": step.sample_s,
        "refine": step.refine_s,
        "train": step.train_s,
        "sync": step.sync_s,
    }
    found = []
    for name, seconds in names.items():
        took = [line[f"seconds/{name}"] for line in lines if line.get(f"seconds/{name}") is not None]
        if took and (seconds or median(took)):
            found.append([f"{name}, s", f"{seconds:.2f}", f"{median(took):.2f}"])
    if turns := [took for line in lines if (took := turn_seconds_of(line)) is not None]:
        found.append(["rest and wake, s", f"{step.turn_s:.2f}", f"{median(turns):.2f}"])
    return found


def _idle(case: Case, own: RunCost, rows: Sequence[TimedRow], lines: Sequence[dict]) -> list[list[str]]:
    found = [
        [f"{pool} idle", f"{1 - own.pools[pool].busy:.0%}" if pool in own.pools else "-", f"{share:.0%}"]
        for pool, share in idle_shares(rows, lines).items()
    ]
    if own.idle is not None:
        found.append(["GPUs idle", f"{own.idle:.0%}", f"{idle_gpus(case, rows, lines):.0%}"])
    return found


def _as_it_was_said(case: Case) -> str:
    """What --dry-run had to say before the run, with assumed lengths."""
    try:
        before = run_cost(case)
    except ValueError:  # a length that is not a number, as older runs have
        return ""
    return f" With assumed lengths, as `--dry-run` has them, a step was {before.step.step_s:.2f} s."


def _learner(case: Case, own: RunCost, rows: Sequence[TimedRow], lines: Sequence[dict]) -> list[list[str]]:
    works = _works(case, rows)
    found = [(works[n], took) for line in lines if (n := line["step"]) in works and (took := line.get("seconds/train"))]
    if not found:
        return []
    ranks = case.recipe.learner.ranks
    if not case.on_gpu:
        reached = median(work.flops / took for work, took in found) / ranks
        expected = median(work.flops for work, _ in found) / own.step.train_s / ranks if own.step.train_s else 0.0
        return [["learner, GFLOP/s a rank", f"{expected / 1e9:.1f}", f"{reached / 1e9:.1f}"]]
    reached = median((work.flops - work.again) / took for work, took in found) / ranks / case.gpu[0].flops
    return [["learner MFU", f"{own.mfu:.0%}" if own.mfu is not None else "-", f"{reached:.0%}"]]


def idle_shares(rows: Sequence[TimedRow], lines: Sequence[dict]) -> dict[str, float]:
    """The share of these steps in which the mean engine of each pool had no request, and the learner no step.

    The pools of several teachers count as one refiner.
    """
    busy: dict[str, list[float]] = defaultdict(list)
    for engine, spans in _spans(rows).items():
        busy[_pool(engine)].append(union_seconds(spans, ALWAYS))
    whole = sum(line["seconds/step"] for line in lines)
    found = {pool: max(0.0, 1 - fmean(seconds) / whole) for pool, seconds in busy.items()}
    found["learner"] = max(0.0, 1 - _trained_s(lines) / whole)
    return found


def idle_gpus(case: Case, rows: Sequence[TimedRow], lines: Sequence[dict]) -> float:
    """The share of these steps in which the mean GPU had neither a request nor a step of training."""
    whole = sum(line["seconds/step"] for line in lines)
    if not case.recipe.takes_turns:
        shares = idle_shares(rows, lines)
        return max(0.0, 1 - sum((1 - share) * case.gpus_of(pool) for pool, share in shares.items()) / case.gpus)
    # Engines of one number have one GPU, where both may have requests at a time.
    by_gpu: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for engine, spans in _spans(rows).items():
        by_gpu[engine.rpartition("-")[2]] += spans
    engines = sum(union_seconds(spans, ALWAYS) for spans in by_gpu.values()) / case.gpus
    return max(0.0, 1 - (engines + _trained_s(lines)) / whole)


def _spans(rows: Sequence[TimedRow]) -> dict[str, list[tuple[float, float]]]:
    """When each engine had a request."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for one in (row.sampled, row.refined):
            if one:
                found[one.engine].append((one.start_s, one.end_s))
    return found


def _pool(engine: str) -> str:
    return role_of(engine.rpartition("-")[0] or engine)


def _trained_s(lines: Sequence[dict]) -> float:
    return sum(line.get("seconds/train") or 0.0 for line in lines)
