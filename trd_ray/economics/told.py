"""An estimate as people and scripts read it.

RunCost, changes, price  ->  render()   ->  the lines of --dry-run
                         ->  as_tree()  ->  plain data for --json
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trd_ray.economics.calibration import Measured
from trd_ray.economics.run_cost import RunCost
from trd_ray.economics.same_gpus import Change

TRUST = "read the hours as -10 to +40%, and their order as firm"
TRUST_CPU = (
    "only a 2-core machine with the miniature models was measured: seconds may be off by a factor of 3 "
    "(--like RUN takes the rates of a run)"
)


@dataclass(frozen=True)
class CostEstimate:
    cost: RunCost
    faster: Sequence[Change]
    plain: Change | None  # OPD without refinements
    rollouts: int  # of a step
    epoch_rollouts: int | None
    measured: Measured | None = None
    price: float | None = None  # of a GPU-hour
    plain_is_opsd: bool = False

    @property
    def epoch_h(self) -> float | None:
        if not self.epoch_rollouts:
            return None
        return math.ceil(self.epoch_rollouts / self.rollouts) * self.cost.step.step_s / 3600


def render(e: CostEstimate) -> str:
    cost = e.cost
    lines = [f"cost, from a model of engines and learner on {_gpus(cost)}{cost.machine}, not measured: {_trust(e)}"]
    lines += [f"  {cost.lengths}", *_differs(e), f"  {_step(e)}", *_pools(cost), *_verifiers(e), *_hours(e)]
    if e.plain:
        name = "OPSD" if e.plain_is_opsd else "OPD"
        where = " on the same GPUs, in its best split" if cost.gpus else ""
        lines.append(f"  plain {name}{where}: {_of_change(e, e.plain)}  {e.plain.typed}")
    if e.faster:
        lines.append("  faster with the same GPUs:" if cost.gpus else "  faster:")
        lines += [
            f"    {_of_change(e, one)} (-{one.gain:.0%})  {one.typed}" + (f"  ({one.note})" if one.note else "")
            for one in e.faster
        ]
    return "\n".join(lines)


def _gpus(cost: RunCost) -> str:
    return f"{cost.gpus:g} " if cost.gpus else ""


def _trust(e: CostEstimate) -> str:
    m = e.measured
    if m and m.slower:
        off = f", whose own steps it meets within {m.error:.0%}" if m.error is not None else ""
        return f"with the rates of {m.run}{off}"
    return TRUST if e.cost.gpus else TRUST_CPU


def _differs(e: CostEstimate) -> list[str]:
    m = e.measured
    if not (m and m.differs):
        return []
    return [
        f"  warning: {m.run} gives lengths alone and no rates, since {m.differs}: name with --like a run of the same "
        "models on the same kind of machine"
    ]


def _verifiers(e: CostEstimate) -> list[str]:
    """Whether verdicts take longer than the engines, which the seconds of a step leave out."""
    cost, step = e.cost, e.cost.step
    while_made = min(step.step_s, step.refine_ends_s)
    if not e.measured or cost.verifying_s <= while_made:
        return []
    return [
        f"  warning: verdicts as in {e.measured.run} take {seconds(cost.verifying_s)} a step, longer than the "
        f"{seconds(while_made)} in which its rows are made, which is not counted here: raise verify.max_tasks, or give "
        "the verifiers more CPUs"
    ]


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2f} s"


def hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.1f} min"


def _step(e: CostEstimate) -> str:
    step = e.cost.step
    parts = [f"sampling {seconds(step.sample_s)}"] if step.sample_s else []
    if step.refine_s:
        after = max(0.0, step.refine_ends_s - step.sample_s)
        parts.append(f"refining {seconds(step.refine_s)} ({seconds(after)} after sampling)")
    parts += [f"training {seconds(step.train_s)}"] if step.train_s else []
    parts += [f"sync {seconds(step.sync_s)}"] if step.sync_s else []
    parts += [f"turns {seconds(step.turn_s)}"] if step.turn_s else []
    parts.append(f"the rest {seconds(step.rest_s)}")
    return f"a step of {e.rollouts} rollouts: {seconds(step.step_s)}; {', '.join(parts)}"


def _pools(cost: RunCost) -> list[str]:
    lines = [f"  {'pool':10}{'count':>6}{'GPUs':>6}{'at work':>9}{'tokens/s':>10}"]
    for name, pool in cost.pools.items():
        gpus = f"{pool.gpus:g}" if pool.gpus else "-"
        line = f"  {name:10}{pool.engines:>6}{gpus:>6}{pool.busy:>9.0%}{pool.tokens_s:>10,.0f}"
        lines.append(line + (f"  MFU {cost.mfu:.0%}" if name == "learner" and cost.mfu is not None else ""))
    if cost.idle is not None:
        lines.append(f"  idle: {cost.idle:.0%} of the GPUs' time")
    return lines


def _hours(e: CostEstimate) -> list[str]:
    cost = e.cost
    found = []
    if cost.training_h is not None and cost.hours is not None:
        text = f"  {cost.steps} steps: {hours(cost.training_h)}"
        if cost.evaluations and cost.evaluation_s:
            text += f"; {cost.evaluations} evaluations: {hours(cost.evaluating_h)}"
        elif cost.evaluations:
            text += f"; {cost.evaluations} evaluations are not counted, since nobody read how many problems they have"
        text += f"; in all, with the start: {hours(cost.hours)}"
        if cost.gpus:
            text += f", {cost.hours * cost.gpus:,.0f} GPU-hours"
        found.append(text + _money(e, cost))
    else:
        found.append("  how many steps a run has is not known here: set steps, or leave --on out")
    if e.epoch_h is not None:
        found.append(f"  an epoch of {e.epoch_rollouts:,} rollouts: {hours(e.epoch_h)}")
    return found


def _money(e: CostEstimate, cost: RunCost) -> str:
    money = cost.price(e.price) if e.price is not None and cost.gpus else None
    return f", {money:,.0f} at {e.price:g} a GPU-hour" if money is not None else ""


def _of_change(e: CostEstimate, change: Change) -> str:
    cost = change.cost
    if cost.hours is None:
        return f"{seconds(cost.step.step_s)} a step"
    return hours(cost.hours) + _money(e, cost)


def as_tree(e: CostEstimate) -> dict[str, Any]:
    cost = e.cost

    def of_cost(one: RunCost) -> dict[str, Any]:
        money = one.price(e.price) if e.price is not None and one.gpus else None
        return {
            "step": asdict(one.step), "pools": {name: asdict(pool) for name, pool in one.pools.items()},
            "steps": one.steps, "gpus": one.gpus, "idle": one.idle, "mfu": one.mfu, "training_hours": one.training_h,
            "evaluation_hours": one.evaluating_h, "hours": one.hours, "price": money,
        }  # fmt: skip

    def of_change(one: Change) -> dict[str, Any]:
        return of_cost(one.cost) | {"overrides": list(one.overrides), "gain": one.gain, "note": one.note}

    return of_cost(cost) | {
        "machine": cost.machine, "lengths": cost.lengths, "trust": _trust(e), "epoch_hours": e.epoch_h,
        "warnings": [line.removeprefix("  warning: ") for line in (*_differs(e), *_verifiers(e))],
        "plain": of_change(e.plain) if e.plain else None, "faster": [of_change(one) for one in e.faster],
    }  # fmt: skip
