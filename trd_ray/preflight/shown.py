"""A placement as people and scripts read it.

Placement  ->  render()  ->  a line for each actor, the sums, a map of the GPUs, yes or no with the reasons
               as_json() ->  the same as plain data
"""

import io
import math
from dataclasses import asdict
from typing import Any

from trd_ray.config import role_of, teacher_of
from trd_ray.preflight.in_turn import phases
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import LEARNER, Seat

WIDTH = 140
LETTERS = {"sampler": "S", "refiner": "R", "judge": "J", LEARNER: "L"}  # by role
MEANING = {"sampler": "S sampler", "refiner": "R refiner", "judge": "J judge", LEARNER: "L learner rank"}
ROW_GPUS = 16  # so many columns has the map at most


def render(plan: Placement) -> str:
    """The plan as text."""
    rows = [("actor", "count", "CPUs", "GPUs", "GiB each", "of which")]
    for actor in plan.actors:
        s = actor.spec
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in actor.memory_gib.items() if gib >= 0.05)
        where = "GPU" if actor.on_gpu else "host"
        row = (s.name, str(s.replicas), f"{s.cpus:g}", f"{s.gpus:g}", f"{actor.total_gib:.1f} {where}")
        rows.append((*row, f"{parts}; {actor.note}"))
    total = f"{_of(plan, 'CPU')} CPUs, {_of(plan, 'GPU')} GPUs"
    if plan.has["GPU"]:
        total += f" ({plan.gpu_gib:.0f} GiB each)"
    total += f", {plan.needs['memory']:.1f}" + (f" of {plan.has['memory']:.1f}" if "memory" in plan.has else "")
    verdict = "fits: yes" if plan.fits else "\n".join(["fits: no", *(f"  - {reason}" for reason in plan.reasons)])
    told = f"in all: {total} GiB of host memory, {plan.object_store_gib:.1f} in the object store; "
    told += f"weights by {plan.sync_backend}"
    return "\n".join([*_table(rows), told, *_phases(plan), *_map(plan), verdict])


def _phases(plan: Placement) -> list[str]:
    """What each GPU holds of those who have it in turn."""
    found = phases(plan.actors)
    lines = [f"in turn, of the {plan.gpu_gib:.0f} GiB of a GPU:"] if found else []
    for phase in found:
        parts = [f"{name} {size:.1f}{_share(plan, name)}" for name, size in phase.works.items()]
        parts += [f"{name} {size:.1f} at rest{_how(plan, name)}" for name, size in phase.rests.items()]
        lines.append(f"  {phase.name:15}  {phase.total_gib:5.1f}: {', '.join(parts)}")
    return lines


def _share(plan: Placement, name: str) -> str:
    share = plan.specs[name].memory_utilization
    return f" (memory_utilization {share:g})" if share else ""


def _how(plan: Placement, name: str) -> str:
    return {"keep": "", "drop": " (new weights come)", "offload": " (weights on the host)", None: ""}[
        plan.specs[name].rest
    ]


def _of(plan: Placement, kind: str) -> str:
    has = plan.has[kind]
    return f"{plan.needs[kind]:g}" + (f" of {has:g}" if math.isfinite(has) else "")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=WIDTH, markup=False, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _map(plan: Placement) -> list[str]:
    """Who sits where. One machine without GPUs leaves nothing to say."""
    used = sorted({seat.machine for seat in plan.seats})
    if not plan.seats or (len(plan.machines) == 1 and not plan.has["GPU"]):
        return []
    columns = min(ROW_GPUS, max(plan.machines[i].gpus for i in used))
    rows = [("who sits where", *(f"GPU {i}" for i in range(columns)), *(["host"] * _any_on_host(plan)))]
    for place in used:
        machine = plan.machines[place]
        label = f"{machine.name}" + (f" ({machine.gpu_kind})" if machine.gpu_kind and machine.gpus else "")
        for first in range(0, max(1, machine.gpus), ROW_GPUS):
            gpus = range(first, first + columns)
            here = [seat for seat in plan.seats if seat.machine == place]
            cells = [_names([seat for seat in here if gpu in seat.gpus], gpu) for gpu in gpus]
            host = [seat for seat in here if not seat.gpus]
            label = label if not first else f"  from GPU {first}"
            rows.append((label, *cells, *([_names(host)] if _any_on_host(plan) else [])))
    empty = len(plan.machines) - len(used)
    lines = [f"{empty} more node{'s' * (empty > 1)} stay{'s' * (empty == 1)} empty"] if empty else []
    meaning = ", ".join(_meaning(name) for name in plan.specs if role_of(name) in LETTERS)
    wide = any(len(seat.gpus) > 1 for seat in plan.seats)
    lines.append(f"{meaning}{'; S0.1: worker 1 of a tensor-parallel engine' if wide else ''}")
    if len(learners := {seat.machine for seat in plan.seats_of(LEARNER)}) > 1:
        lines.append(f"no node holds all ranks beside the engines: they share their weights over {len(learners)} nodes")
    if any(turn for turn in plan.turns().values()):
        lines.append(f"who shares a GPU starts in turn: {', '.join(plan.turns())}")
    return [*_table(rows), *lines]


def _any_on_host(plan: Placement) -> bool:
    return any(not seat.gpus for seat in plan.seats)


def _names(seats: list[Seat], gpu: int | None = None) -> str:
    names = []
    for seat in seats:
        worker = f".{seat.gpus.index(gpu)}" if gpu is not None and len(seat.gpus) > 1 else ""
        names.append(f"{_letter(seat.actor)}{seat.number}{worker}")
    return " ".join(names) or "-"


def _letter(actor: str) -> str:
    """S, R, J or L; the pools of several teachers are told apart by their names: maths:0."""
    return f"{teacher}:" if (teacher := teacher_of(actor)) else LETTERS[actor]


def _meaning(actor: str) -> str:
    return f"{_letter(actor)} {actor}" if teacher_of(actor) else MEANING[actor]


def as_json(plan: Placement) -> dict[str, Any]:
    """The plan as data that JSON can hold: what is not known or has no end is null."""
    actors = [
        {
            "actor": a.spec.name, "count": a.spec.replicas, "cpus": a.spec.cpus, "gpus": a.spec.gpus,
            "on_gpu": a.on_gpu, "gib": a.memory_gib, "host_gib": a.host_gib, "first_gib": a.first_gib, "note": a.note,
            "rest_gib": a.rest_gib, "rest": a.spec.rest, "memory_utilization": a.spec.memory_utilization,
        }
        for a in plan.actors
    ]  # fmt: skip
    seats = [asdict(seat) | {"machine": plan.machines[seat.machine].name} for seat in plan.seats]
    found = {
        "fits": plan.fits, "reasons": plan.reasons, "weights_by": plan.sync_backend, "needs": plan.needs,
        "has": plan.has, "machines": [asdict(machine) for machine in plan.machines], "actors": actors, "seats": seats,
        "starts": plan.turns(), "object_store_gib": plan.object_store_gib,
        "phases": [asdict(phase) for phase in phases(plan.actors)],
    }  # fmt: skip
    return _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
