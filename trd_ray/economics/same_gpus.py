"""What would be faster on the same GPUs, each with the overrides to type; and TRD beside plain distillation.

    Case, plan (a recipe -> its placement)  ->  faster()     ->  Change, the fastest first
                                            ->  plain_opd()  ->  the same GPUs without refinements, in their best split

Every change is a recipe that loads and whose placement fits. Hours are compared for as many rollouts as the case has.
"""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from trd_ray.config import EngineConfig, Recipe, apply_override, from_tree
from trd_ray.economics import constants
from trd_ray.economics.case import Case
from trd_ray.economics.run_cost import RunCost, run_cost
from trd_ray.errors import UserError
from trd_ray.preflight.placement import Placement

LEAST_GAIN = 0.03
SHOWN = 6
MOST_SPLITS = 12  # that are tried for steps of up to 512 rollouts, fewer for more
MOST_PLAIN = 6  # splits that are tried without refinements
MOST_ROLLOUTS = 1024  # of a step, that are proposed: twice the paper's
Plan = Callable[[Recipe], Placement]


@dataclass(frozen=True)
class Change:
    overrides: tuple[str, ...]
    cost: RunCost
    s_a_rollout: float
    gain: float  # share of the time that it saves
    note: str = ""  # what else it changes

    @property
    def typed(self) -> str:
        """As a shell takes it."""
        return " ".join(map(shlex.quote, self.overrides))


def changed(case: Case, overrides: Sequence[str], plan: Plan) -> Case | None:
    """The case with these overrides; None where such a recipe is refused or does not fit."""
    tree = case.recipe.model_dump(mode="json")
    before = case.recipe.rollouts_per_step
    try:
        for override in overrides:
            apply_override(tree, override)
        recipe = from_tree(tree)
        placed = plan(recipe)
    except UserError:
        return None
    if not placed.fits:
        return None
    steps = case.steps and max(1, round(case.steps * before / recipe.rollouts_per_step))
    return replace(case, recipe=recipe, placed=placed, steps=steps)


def faster(case: Case, plan: Plan) -> list[Change]:
    """What saves at least LEAST_GAIN of the time, of each kind of change the best."""
    now = _each(run_cost(case), case)
    bests = [_best(case, group, plan, now) for group in _kinds(case)]
    found = [one for one in bests if one and one.gain >= LEAST_GAIN]
    return sorted(found, key=lambda change: -change.gain)[:SHOWN]


def _best(case: Case, group: Sequence[tuple[Sequence[str], str]], plan: Plan, now: float) -> Change | None:
    """The fastest, found on one draw of the lengths, and costed on as many as the case itself."""
    tried = [one for overrides, note in group if (one := _tried(case, overrides, note, plan, now, draws=1))]
    best = min(tried, key=lambda change: change.s_a_rollout, default=None)
    return _tried(case, best.overrides, best.note, plan, now) if best else None


def _each(cost: RunCost, of: Case) -> float:
    return cost.step.step_s / of.recipe.rollouts_per_step


def _tried(
    case: Case, overrides: Sequence[str], note: str, plan: Plan, now: float, draws: int = constants.DRAWS
) -> Change | None:
    other = changed(case, overrides, plan)
    if other is None:
        return None
    cost = run_cost(other, draws)
    each = _each(cost, other)
    return Change(tuple(overrides), cost, each, 1 - each / now, note)


def _kinds(case: Case) -> Iterator[list[tuple[list[str], str]]]:
    """Groups of overrides, of which one is enough."""
    r = case.recipe
    gpus = round(sum(a.spec.replicas * a.spec.gpus for a in case.placed.actors))
    sampled = r.data.source == "problems"
    if sampled and case.on_gpu and r.placement == "separate" and not r.teachers:
        yield [(overrides, "") for overrides in splits(case, gpus)]
    if not sampled:
        return
    if r.stream.max_staleness == 0:
        yield [(["stream.max_staleness=1"], "rollouts are one step old")]
    elif r.stream.max_staleness != "never" and r.sync.in_flight == "drain" and r.sync.lora != "adapter":
        yield [(["sync.in_flight=keep"], "long rollouts go on with newer weights")]
    if (r.stream.rows_per_block or 1) > 1 and r.sampler.response_tokens > 512:
        yield [(["stream.rows_per_block=1"], "")]
    more = [r.rollouts_per_step * times for times in (2, 4) if r.rollouts_per_step * times <= MOST_ROLLOUTS]
    yield [([f"rollouts_per_step={n}"], f"fewer, larger updates; {_steps(case, n)}") for n in more]
    if not case.on_gpu:
        return
    if r.placement == "separate" and r.refines and not r.teachers:
        shared = ["placement=shared", *(["sync.lora=adapter"] if r.learner.lora else [])]
        if r.sync.in_flight == "keep" and r.learner.lora:  # refused beside adapters, which wait for nothing
            shared.append("sync.in_flight=drain")
        pools = [a.spec for a in case.placed.actors if a.spec.name in ("sampler", "refiner")]
        if all(spec.gpus >= 1 for spec in pools):  # one engine more where the refiner's had been, else it has its share
            shared.append(f"sampler.replicas={sum(spec.replicas for spec in pools)}")
        yield [(shared, "one pool samples and refines")]
    if r.takes_turns:
        apart = [f"placement={'shared' if r.shares_engines else 'separate'}", "stream.max_staleness=1"]
        apart += ["stream.rows_per_block=null"] * (r.stream.rows_per_block is not None)
        yield [([*apart, *split], "GPUs of their own; rollouts are one step old") for split in splits(case, gpus)]
        if r.refines and not r.shares_engines:
            yield [([_in_large_batches(r, gpus)], "")]
    elif not r.teachers:
        yield [(_in_turn(r, gpus), "all GPUs sample and refine, then train; strictly on-policy")]
    if "kv_cache_dtype" not in r.sampler.extra:
        yield [
            (
                [f"sampler.extra={_with(r.sampler.extra, 'kv_cache_dtype', 'fp8')}"],
                "rounds the cache: see sync/gap_mean",
            )
        ]


def _steps(case: Case, rollouts: int) -> str:
    steps = case.steps and round(case.steps * case.recipe.rollouts_per_step / rollouts)
    return f"steps={steps} for as many rollouts" if case.recipe.steps else f"{steps} steps" if steps else "fewer steps"


def _in_turn(r: Recipe, gpus: int) -> list[str]:
    """All GPUs for every pool and the learner in turn, and what is refused beside that as it has to be."""
    adapters = r.learner.lora is not None and r.teacher.mode == "opsd" and r.teacher.follow == "frozen"
    pools = {"sampler": r.sampler} | ({"refiner": r.refiner} if r.refines and r.placement == "separate" else {})
    found = ["placement=timeshare"]
    found += ["stream.max_staleness=0"] * (r.stream.max_staleness not in (0, "never"))
    if adapters and r.sync.lora != "adapter":  # then one pool also refines
        found += ["sync.lora=adapter", *["sync.in_flight=drain"] * (r.sync.in_flight == "keep")]
    found += ["sync.backend=auto"] * (r.sync.backend == "nccl")
    alone = r.teacher.mode == "opsd" and (adapters or r.teacher.follow == "live")
    length = r.refiner.max_model_len
    if alone and "refiner" in pools and length and r.sampler.max_model_len and length > r.sampler.max_model_len:
        found.append(f"sampler.max_model_len={length}")
    for name, engine in list(pools.items())[: 1 if alone else 2]:
        found.append(f"{name}.replicas={gpus}")
        found += [f"{name}.gpus=null"] * (engine.gpus is not None)
        default = EngineConfig().memory_utilization  # with which it is computed
        found += [f"{name}.memory_utilization={default}"] * (engine.memory_utilization != default)
    if "refiner" in pools and not alone:
        found.append(_in_large_batches(r, gpus))
    return [*found, f"learner.workers={gpus}", *["learner.gpus=null"] * (r.learner.gpus is not None)]


def _in_large_batches(r: Recipe, engines: int) -> str:
    """Two engines of a GPU: the one refines when the other has sampled all that it has of a step."""
    return f"stream.rows_per_block={math.ceil(r.rollouts_per_step / engines)}"


def _with(extra: dict[str, Any], key: str, value: str) -> str:
    return yaml.safe_dump(extra | {key: value}, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def splits(case: Case, gpus: int) -> list[list[str]]:
    """Ways to give so many whole GPUs to engines and ranks, those near an even load of the three first."""
    r = case.recipe
    refiner = r.refines and not r.shares_engines
    wide, wide_r = r.sampler.tensor_parallel, r.refiner.tensor_parallel if refiner else 1
    whole = r.takes_turns or all(a.spec.gpus == int(a.spec.gpus) for a in case.placed.actors)
    if not whole or not case.on_gpu:
        return []
    now = run_cost(case, draws=1)
    load = {name: pool.gpus * pool.busy for name, pool in now.pools.items()}
    total = sum(load.values()) or 1.0
    found = []
    for ranks in range(1, gpus):
        for refiners in range(1 if refiner else 0, (gpus - ranks) // wide_r + 1 if refiner else 1):
            left = gpus - ranks - refiners * wide_r
            if left < wide or left % wide:
                continue
            took = {"sampler": left, "refiner": refiners * wide_r, "learner": ranks}
            # How full the fullest would be if work moved with the GPUs.
            fullest = max(load.get(name, 0.0) / n for name, n in took.items() if n)
            overrides = [f"sampler.replicas={left // wide}"]
            overrides += [f"refiner.replicas={refiners}"] if refiner else []
            found.append((fullest * gpus / total, [*overrides, f"learner.workers={ranks}"]))
    most = max(6, MOST_SPLITS * 512 // max(512, r.rollouts_per_step))
    return [overrides for _, overrides in sorted(found)[:most]]


def plain_opd(case: Case, plan: Plan) -> Change | None:
    """The same GPUs without refinements: y_o trains under the teacher's vanilla view. None where that is the case."""
    r = case.recipe
    if not r.refines or r.data.source == "corpus" or r.teachers:
        return None
    plain = ["train.trajectory=y_o", "train.subset=all", "teacher.view=vanilla"]
    plain += ["refiner.from=attempt"] if r.refiner.begins != "attempt" else []
    if r.placement == "shared":
        plain.append("placement=separate")
    gpus = round(sum(a.spec.replicas * a.spec.gpus for a in case.placed.actors))
    now = _each(run_cost(case), case)
    if not case.on_gpu or r.takes_turns:
        return _tried(case, plain, "", plan, now)
    taken = sum(a.spec.gpus * a.spec.replicas for a in case.placed.actors if a.spec.name != "learner")
    apart = [*plain, f"sampler.replicas={max(1, int(taken) // r.sampler.tensor_parallel)}"]
    first = changed(case, apart, plan)
    if first is None:
        return _tried(case, plain, "", plan, now)
    group = [([*plain, *split], "") for split in splits(first, gpus)[:MOST_PLAIN]]
    return _best(case, [*group, (apart, "")], plan, now)
