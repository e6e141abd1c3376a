"""Why a plan does not fit its machines, each with the remedy: sums first, then node by node.

actors, what they need, what there is  ->  a sentence for each thing that is short
"""

import math
from collections.abc import Mapping, Sequence

from trd_ray.config import JUDGE_POOL, Recipe, keys_of
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.in_turn import phases
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.seats import LEARNER, Unseated


def of_sums(actors: list[ActorPlan], needs: Mapping[str, float], has: Mapping[str, float]) -> list[str]:
    reasons = []
    for kind in ("CPU", "GPU"):
        if needs[kind] > has[kind] + 1e-6:
            each = {a.spec.name: (a.spec.replicas, a.spec.cpus if kind == "CPU" else a.spec.gpus) for a in actors}
            parts = ", ".join(f"{name} {n} x {amount:g}" for name, (n, amount) in each.items() if amount)
            keys = [f"{keys_of(name)}.{kind.lower()}s" for name, (_, amount) in each.items() if amount]
            keys = ["verify.cpus" if key == "verifier.cpus" else key for key in keys]
            several = "replicas and workers" if "learner" in each else "replicas"
            reasons.append(
                f"the placement needs {needs[kind]:g} {kind}s ({parts}), but the cluster has {has[kind]:g}: "
                f"lower {', '.join(keys)}, or the {several}"
            )
    return reasons


def of_memory(
    recipe: Recipe,
    store: float,
    actors: list[ActorPlan],
    needs: Mapping[str, float],
    has: Mapping[str, float],
    machines: Sequence[Machine],
) -> list[str]:
    """`store` is the size of the object store of a local cluster, in GiB."""
    free, total = (machines[0].free_gib, machines[0].total_gib) if len(machines) == 1 else (None, None)
    if free is not None and total is not None and store > free:
        return [
            f"cluster.object_store_gib is {store:g}, but {free:.1f} of {total:.1f} GiB are free now: lower it "
            "(default: what the rows of the steps at a time take, 0.5 at least)"
        ]
    if needs["memory"] <= has.get("memory", math.inf):
        return []
    parts = ", ".join(
        f"{a.spec.name} {a.spec.replicas} x {a.host_gib:.1f}"
        + (f" and {a.first_gib:.1f} in rank 0" if a.first_gib >= 0.05 else "")
        for a in actors
    )
    if recipe.cluster.memory_gib:
        there = f"cluster.memory_gib allows {has['memory']:g}"
        go_on = "raise cluster.memory_gib"
    elif free is not None and total is not None:
        there = (
            f"{free:.1f} of {total:.1f} GiB are free now (other processes hold {total - free:.1f}), and the object "
            f"store takes {store:g} of them"
        )
        go_on = "wait for memory, or count on more with cluster.memory_gib"
    else:
        there = f"the cluster has {has['memory']:.1f}, as each of its nodes found when it started"
        go_on = "start its nodes with another `ray start --memory`, or set cluster.memory_gib"
    return [
        f"the placement needs about {needs['memory']:.1f} GiB of memory ({parts}), but {there}: "
        f"{', '.join(_memory_remedies(recipe, actors))}; or {go_on}"
    ]


def _memory_remedies(recipe: Recipe, actors: list[ActorPlan]) -> list[str]:
    """What lowers the memory that this job needs, by keys of the actors that it has."""
    there = {a.spec.name: a for a in actors}
    engines = [name for name in recipe.engines if name in there]
    lower = [f"{keys_of(name)}.replicas" for name in engines if there[name].spec.replicas > 1]
    lower += [
        f"{keys_of(name)}.cpu_kv_cache_gib"
        for name in engines
        if not there[name].on_gpu and _cache_gib(there[name]) > 1
    ]
    remedies = ["use a smaller model"]
    if "learner" in there and not there["learner"].on_gpu:
        lower.append("learner.tokens_per_micro_batch")
        if not recipe.learner.activation_checkpointing:
            remedies.append("set learner.activation_checkpointing=true")
    return [*remedies, f"lower {' or '.join(lower)}"] if lower else remedies


def _cache_gib(engine: ActorPlan) -> float:
    return engine.memory_gib.get("KV cache", 0.0)


def of_gpu_memory(actors: list[ActorPlan], gpu_gib: Mapping[str, float]) -> list[str]:
    """`gpu_gib` is the memory of the smallest GPU that an actor sits on, by the actor's name."""
    reasons = []
    in_turn = {name for phase in phases(actors) for name in phase.works}
    for actor in (a for a in actors if a.on_gpu and a.spec.name not in in_turn):
        allowed = gpu_gib[actor.spec.name] * actor.gpu_share
        if actor.total_gib > allowed * 1.001:
            largest = max(actor.memory_gib, key=lambda part: actor.memory_gib[part])
            name, group = actor.spec.name, keys_of(actor.spec.name)
            remedy = (
                "raise learner.workers, set learner.activation_checkpointing=true, or lower "
                "learner.tokens_per_micro_batch or learner.chunk_tokens"
                if name == "learner"
                else f"raise {group}.tensor_parallel or {group}.gpus, or lower {group}.memory_utilization"
            )
            reasons.append(
                f"the {name} needs about {actor.total_gib:.1f} GiB of each of its GPUs (most for {largest}: "
                f"{actor.memory_gib[largest]:.1f}), but may use {allowed:.1f}: {remedy}"
            )
    return reasons


def of_phases(actors: list[ActorPlan], gpu_gib: Mapping[str, float]) -> list[str]:
    """GPUs that are too small for those who have them in turn; `gpu_gib` as in `of_gpu_memory`."""
    found = {a.spec.name: a for a in actors}
    reasons = []
    for phase in phases(actors):
        there = min(gpu_gib[name] for name in (*phase.works, *phase.rests))
        if phase.total_gib <= there * 1.001:
            continue
        working = ", ".join(f"{name} {gib:.1f}" for name, gib in phase.works.items())
        resting = ", ".join(f"{name} {gib:.1f}" for name, gib in phase.rests.items())
        remedy = "lower " + " or ".join(f"{keys_of(name)}.memory_utilization" for name in phase.works)
        remedy += " (by default it is computed)"
        if LEARNER in phase.works:
            parts = found[LEARNER].memory_gib
            largest = max(parts, key=lambda part: parts[part])
            working += f", of which {largest} {parts[largest]:.1f}"
            remedy = (
                "raise learner.workers, and the engines with it, set learner.activation_checkpointing=true, or lower "
                "learner.tokens_per_micro_batch or learner.chunk_tokens"
            )
        reasons.append(
            f'a GPU holds about {phase.total_gib:.1f} GiB in the phase "{phase.name}" ({working}'
            f"{f'; at rest {resting}' if resting else ''}), but has {there:.1f}: {remedy}"
        )
    return reasons


def of_turns(recipe: Recipe, specs: Mapping[str, ActorSpec]) -> list[str]:
    """Engines that cannot be spread over the GPUs of the ranks with which they have them in turn."""
    ranks = specs[LEARNER].replicas if recipe.takes_turns and LEARNER in specs else 0
    return [
        "placement=timeshare has the engines on the GPUs of the ranks, one of a pool on each or on every second, third "
        f"... of them, but {keys_of(pool)}.replicas is {spec.replicas} and learner.workers is {ranks}: set "
        f"{keys_of(pool)}.replicas={ranks}"
        for pool, spec in specs.items()
        if ranks and pool in recipe.engines and pool != JUDGE_POOL and spec.gpus and ranks % spec.replicas
    ]


def of_seat(unseated: Unseated, spec: ActorSpec) -> str:
    """Why an actor finds no place on any one node, though the sums would do."""
    need = unseated.need
    parts = [f"{need.gpus:g} {'of a GPU' if 0 < need.gpus < 1 else 'GPUs'}"] if need.gpus else []
    parts += [f"{need.cpus:g} CPUs"] if need.cpus else []
    parts += [f"{need.memory_gib:.1f} GiB of memory"] if need.memory_gib else []
    name = keys_of(spec.name)
    keys = [f"{name}.gpus"] if need.gpus else []
    if name == LEARNER:
        keys = ["learner.workers", *keys]
    elif name != "verifier":
        keys = [f"{name}.tensor_parallel" if need.gpus > 1 else f"{name}.replicas", *keys]
    keys.append("verify.cpus" if name == "verifier" else f"{name}.cpus")
    return (
        f"{need} needs {', '.join(parts)} of one node, but where the others sit, {unseated.why}: lower "
        f"{', '.join(keys)}, or what the others take"
    )


def of_gpu_counts(recipe: Recipe, specs: Mapping[str, ActorSpec]) -> list[str]:
    """GPUs that Ray cannot give as they are asked for: it gives one actor a share of one GPU, or whole ones."""
    reasons = []
    for pool, spec in specs.items():
        name, engine = keys_of(pool), recipe.engines.get(pool)
        width = engine.tensor_parallel if engine else 1
        if spec.gpus > 1 and spec.gpus % 1:
            reasons.append(
                f"{name}.gpus is {spec.gpus:g}, but Ray gives whole GPUs or a share of one: set {name}.gpus={width}"
            )
        elif width > 1 and 0 < spec.gpus < width:
            reasons.append(
                f"{name}.gpus is {spec.gpus:g}, but its {width} tensor-parallel workers need a GPU each: set "
                f"{name}.gpus={width}, or leave it out"
            )
    return reasons


def of_builds(recipe: Recipe, specs: Mapping[str, ActorSpec], machines: Sequence[Machine]) -> list[str]:
    """Engines without a GPU where vLLM is a CUDA build: it would take GPU 0, whoever has that, or find none.

    Ray hides no GPU from an actor that reserves none.
    """
    cuda = next((machine for machine in machines if machine.vllm == "cuda"), None)
    reasons = []
    for pool, spec in specs.items():
        name, engine = keys_of(pool), recipe.engines.get(pool)
        if not engine or spec.gpus or cuda is None:
            continue
        if any(machine.gpus for machine in machines):
            reasons.append(
                f"{name}.gpus=0 keeps no engine from a GPU: vLLM on {cuda.name} is a CUDA build, which takes the first "
                f"GPU that it sees, whoever has it: set {name}.gpus=null for {engine.tensor_parallel} of its own, or a "
                f"share such as {name}.gpus=0.3; engines on CPUs need vLLM's CPU build (requirements/cpu.lock)"
            )
        else:
            reasons.append(
                f"the {pool} would run on CPUs, since there is no GPU, but vLLM on {cuda.name} is a CUDA build: "
                "install requirements/cpu.lock there, or use nodes with GPUs"
            )
    return reasons
