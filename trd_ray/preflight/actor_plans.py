"""What each actor of a job holds, on machines whose GPUs have so many GiB: the rows of a plan.

    recipe, what actors reserve, Facts of models  ->  actors_of()  ->  ActorPlan of each pool, the learner, verifiers
                                                  ->  needs_of()   ->  Need of each engine and rank, to be seated

Memory is an estimate, in GiB. An actor on GPUs takes it on each of its GPUs, any other actor on the host.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trd_ray.config import JUDGE_POOL, SAMPLER, EngineConfig, Recipe, keys_of, teacher_of
from trd_ray.models import ModelFacts
from trd_ray.preflight import memory as estimate
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.in_turn import rested, utilizations
from trd_ray.preflight.memory import GIB
from trd_ray.preflight.seats import LEARNER, Need


@dataclass(frozen=True)
class Facts:
    """What is known of the models and the data."""

    student: ModelFacts
    teachers: Mapping[str, ModelFacts]
    judge: ModelFacts | None
    longest_sequence_tokens: int

    def of(self, pool: str) -> ModelFacts:
        """Of the model that a pool serves."""
        fixed = {SAMPLER: self.student, JUDGE_POOL: self.judge}
        return fixed.get(pool) or self.teachers[teacher_of(pool)]


def actors_of(
    recipe: Recipe,
    specs: Mapping[str, ActorSpec],
    facts: Facts,
    gpu_gib: Mapping[str, float],
    sends: str | None,
    reasons: list[str],
) -> list[ActorPlan]:
    """The memory of each actor on GPUs of the sizes `gpu_gib`, where weights travel by the backend `sends`.

    What an engine cannot serve goes to `reasons`.
    """
    shares = _shares(recipe, specs, facts, gpu_gib)
    actors = []
    for name, engine in recipe.engines.items():
        if name in specs:
            spec = replace(specs[name], memory_utilization=shares.get(name))
            # What takes turns gets weights where its cache had been: see `_learner`.
            receives = sends if name in recipe.following and name not in shares else None
            actors.append(_engine(spec, engine, recipe, facts.of(name), gpu_gib[name], receives, reasons))
    if LEARNER in specs:
        actors.append(_learner(recipe, specs[LEARNER], facts, sends, actors))
        if shares:
            actors = rested(actors, min(gpu_gib[name] for name in (*shares, LEARNER)))
    process = estimate.HOST_OVERHEAD_GIB["verifier"]
    note = f"tasks, up to {recipe.verify.max_tasks} at a time"
    actors.append(ActorPlan(specs["verifier"], {"process": process}, process, note=note))
    return actors


def _shares(
    recipe: Recipe, specs: Mapping[str, ActorSpec], facts: Facts, gpu_gib: Mapping[str, float]
) -> dict[str, float]:
    """How much of its GPU each engine takes that has it in turn with a rank."""
    takers = {
        name: e for name, e in recipe.engines.items() if name in specs and name != JUDGE_POOL and specs[name].gpus
    }
    if not recipe.takes_turns or not takers:
        return {}
    trains = LEARNER in specs
    rank = sum(estimate.rank_rest_gib(recipe, facts.student, facts.teachers).values()) if trains else 0.0
    smallest = min(gpu_gib[name] for name in takers)
    return utilizations(recipe, takers, {name: facts.of(name) for name in takers}, smallest, rank)


def _learner(
    recipe: Recipe, spec: ActorSpec, facts: Facts, sends: str | None, engines: Sequence[ActorPlan]
) -> ActorPlan:
    """The plan of a rank, beside `engines` that may have its GPU in turn with it."""
    student, teacher = facts.student, facts.teachers
    on_gpu = spec.gpus > 0
    resting = estimate.rank_rest_gib(recipe, student, teacher) if recipe.takes_turns and on_gpu else {}
    received = sum(
        actor.memory_gib["weights"] + estimate.sync_bytes(sends, student, estimate.BYTES[recipe.learner.dtype]) / GIB
        for actor in engines
        if resting and actor.spec.name in recipe.following and recipe.rest_of(actor.spec.name) == "drop"
    )
    longest = facts.longest_sequence_tokens
    memory = estimate.rank_gib(recipe, student, teacher, on_gpu, longest, sends, received)
    host = estimate.rank_host_gib(recipe, student, teacher) if on_gpu else sum(memory.values())
    share = min(1.0, spec.gpus)
    least = sum(memory.values()) / share if on_gpu and not resting else 0.0
    note = f"micro-batches of {max(recipe.learner.tokens_per_micro_batch, longest)} tokens"
    first = estimate.reader_gib(recipe, student, teacher, on_gpu)
    return ActorPlan(spec, memory, host, share, note, least, first, resting)


def needs_of(actors: Sequence[ActorPlan]) -> list[Need]:
    """What each engine, each rank and the verifier needs of one node."""
    return [
        Need(
            a.spec.name, number, a.spec.cpus, a.spec.gpus, a.host_gib + (a.first_gib if number == 0 else 0.0),
            a.least_gpu_gib, beside_rank=a.on_gpu and a.spec.rest is not None,
        )
        for a in actors
        for number in range(a.spec.replicas)
    ]  # fmt: skip


def _engine(
    spec: ActorSpec,
    engine: EngineConfig,
    recipe: Recipe,
    model: ModelFacts,
    gpu_gib: float,
    receives: str | None,
    reasons: list[str],
) -> ActorPlan:
    """The plan of one vLLM engine that `receives` weights by this backend. What it cannot serve goes to `reasons`."""
    name, group = spec.name, keys_of(spec.name)
    if model.attention_heads % engine.tensor_parallel:
        reasons.append(
            f"{group}.tensor_parallel={engine.tensor_parallel} does not divide the {model.attention_heads} attention "
            f"heads of {model.path}: set it to a divisor"
        )
    on_gpu = spec.gpus > 0
    memory, kv_gib = estimate.engine_gib(
        engine, recipe, model, gpu_gib if on_gpu else None, receives, spec.memory_utilization
    )
    length = engine.max_model_len or model.max_positions
    sequence_gib = estimate.sequence_gib(engine, recipe, model, length)
    if kv_gib < sequence_gib:
        keys = f"{group}.tensor_parallel or {group}.memory_utilization" if on_gpu else f"{group}.cpu_kv_cache_gib"
        if spec.rest and spec.memory_utilization not in (None, engine.memory_utilization):  # it is computed
            keys = "learner.workers, and the engines with it"
        elif spec.memory_utilization:  # and has one GPU in any case
            keys = f"{group}.memory_utilization"
        reasons.append(
            f"the {name}'s KV cache has {max(0.0, kv_gib):.1f} GiB, but one sequence of {length} tokens takes "
            f"{sequence_gib:.1f}: raise {keys}, or lower {group}.max_model_len"
        )
    note = f"cache for {max(0, math.floor(kv_gib / sequence_gib))} sequences of {length} tokens"
    if name == SAMPLER and recipe.shares_engines and recipe.refines:
        note += ", of the refiner too" + " (without the adapter)" * recipe.refines_without_adapter
    if engine.bounds.min < engine.bounds.max:
        note += f"; {engine.bounds.min} to {engine.bounds.max} engines, as steps need them"
    if spec.cpus < engine.cpus:
        note += f"; {engine.cpus - spec.cpus:g} CPUs more in turn with the learner"
    host = estimate.HOST_OVERHEAD_GIB["engine"] if on_gpu else sum(memory.values())
    share = min(1.0, spec.gpus / engine.tensor_parallel)
    least = _least_gpu_gib(engine, memory, sequence_gib, share) if on_gpu and not spec.memory_utilization else 0.0
    return ActorPlan(spec, memory, host, share, note, least)


def _least_gpu_gib(engine: EngineConfig, memory: Mapping[str, float], sequence_gib: float, share: float) -> float:
    """GiB of a GPU on which vLLM's part has room for one sequence, and the rest of the share for a weight sync."""
    receiving = memory.get("weight sync", 0.0)
    fixed = sum(memory.values()) - memory.get("KV cache", 0.0) - receiving
    least = (fixed + sequence_gib) / engine.memory_utilization
    rest = share - engine.memory_utilization
    return max(least, receiving / rest) if rest > 0 else least
