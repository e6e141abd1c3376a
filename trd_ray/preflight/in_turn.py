"""Engines and ranks that have the same machine in turn: what Ray counts, and what each GPU holds in both phases.

    what actors ask for         ->  counted_once()  ->  a share of a GPU each, and cores that are counted once
    pools, models, GiB of GPUs  ->  utilizations()  ->  how much of its GPU each engine takes while it is awake
    actors of a plan            ->  rested()        ->  how the weights of each engine rest, and what then is left
                                ->  phases()        ->  GpuPhase: the engines awake, then the learner at work

Ray has no word for turns. A share of a GPU is accounting alone: who works has the whole of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trd_ray.config import JUDGE_POOL, EngineConfig, Recipe, Rest
from trd_ray.models import ModelFacts
from trd_ray.preflight import memory as estimate
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.seats import LEARNER

AWAKE_SHARE = 0.9  # of a GPU, which engines that are awake and a rank at rest take together
_STEPS = 10_000  # in which Ray counts shares


@dataclass(frozen=True)
class GpuPhase:
    name: str
    works: dict[str, float]  # actor -> GiB of each GPU
    rests: dict[str, float]

    @property
    def total_gib(self) -> float:
        return sum(self.works.values()) + sum(self.rests.values())


def counted_once(specs: Sequence[ActorSpec], recipe: Recipe, on_gpus: bool) -> list[ActorSpec]:
    """The pools and the learner, which take turns; a judge, which does not, has GPUs and cores of its own.

    A phase needs the cores of its actors alone. The learner reserves its own, and engines what they need beyond those.
    """
    takers = [spec for spec in specs if spec.name != JUDGE_POOL]
    engines = sum(spec.replicas * spec.cpus for spec in takers if spec.name != LEARNER)
    learner = [spec for spec in takers if spec.name == LEARNER]
    ranks = sum(spec.replicas * spec.cpus for spec in learner)
    beyond = max(0.0, engines - ranks) / engines if engines else 0.0
    share = math.floor(_STEPS / len(takers)) / _STEPS if on_gpus and takers else 0.0
    found = []
    for spec in specs:
        if spec.name == LEARNER:
            spec = replace(spec, gpus=share)
        elif spec in takers:
            cpus = math.ceil(spec.cpus * beyond * _STEPS) / _STEPS
            rest = recipe.rest_of(spec.name) if learner else None
            spec = replace(spec, cpus=cpus, gpus=share, rest=rest)
        found.append(spec)
    return found


def utilizations(
    recipe: Recipe,
    engines: Mapping[str, EngineConfig],
    models: Mapping[str, ModelFacts],
    gpu_gib: float,
    rank_gib: float,
) -> dict[str, float]:
    """The share of a GPU that each engine takes while all are awake, beside `rank_gib` of a rank at rest.

    A memory_utilization of the recipe's own stays as it is; the default means that it is computed. What all weights
    leave goes to the caches in equal parts.
    """
    default = EngineConfig().memory_utilization
    asked = {name: e.memory_utilization for name, e in engines.items() if e.memory_utilization != default}
    fixed = {}
    for name, engine in engines.items():
        if name not in asked:
            parts, cache = estimate.engine_gib(engine, recipe, models[name], gpu_gib)
            fixed[name] = sum(parts.values()) - max(0.0, cache)
    left = AWAKE_SHARE * gpu_gib - rank_gib - sum(asked.values()) * gpu_gib - sum(fixed.values())
    caches = max(0.0, left) / max(1, len(fixed))
    return asked | {name: max(1, math.floor((size + caches) / gpu_gib * 1000)) / 1000 for name, size in fixed.items()}


def rested(actors: Sequence[ActorPlan], gpu_gib: float) -> list[ActorPlan]:
    """The actors with what each holds at rest. Weights go to the host where the learner's work leaves no room for them.

    Those of the largest engine go first.
    """
    found = {a.spec.name: _rests(a, a.spec.rest) if _takes_turns(a) and a.spec.rest else a for a in actors}
    kept = [name for name, actor in found.items() if actor.spec.rest == "keep" and _takes_turns(actor)]
    for name in sorted(kept, key=lambda name: -found[name].memory_gib["weights"]):
        at_work = phases(list(found.values()))[-1]
        if at_work.total_gib > gpu_gib:
            actor = found[name]
            moved = actor.resting_gib - sum(estimate.engine_rest_gib(actor.memory_gib, "offload").values())
            found[name] = replace(_rests(actor, "offload"), host_gib=actor.host_gib + moved)
    return list(found.values())


def _takes_turns(actor: ActorPlan) -> bool:
    """Whether it is an engine that has its GPU in turn with others."""
    return actor.spec.memory_utilization is not None


def _rests(actor: ActorPlan, rest: Rest) -> ActorPlan:
    resting = estimate.engine_rest_gib(actor.memory_gib, rest)
    return replace(actor, spec=replace(actor.spec, rest=rest), rest_gib=resting)


def phases(actors: Sequence[ActorPlan]) -> list[GpuPhase]:
    """What the fullest GPU holds while the engines are awake, and while the learner works; none without turns on GPUs.

    Without a learner the engines are awake all the time.
    """
    engines = [actor for actor in actors if _takes_turns(actor)]
    if not engines:
        return []
    learner = [actor for actor in actors if actor.spec.name == LEARNER]
    at_work = GpuPhase("learner at work", _at_work(learner), _at_rest(engines))
    return [GpuPhase("engines awake", _at_work(engines), _at_rest(learner)), *([at_work] if learner else [])]


def _at_work(actors: Sequence[ActorPlan]) -> dict[str, float]:
    return {actor.spec.name: actor.total_gib for actor in actors}


def _at_rest(actors: Sequence[ActorPlan]) -> dict[str, float]:
    return {actor.spec.name: actor.resting_gib for actor in actors}
