"""Which actors run where, with what memory, and whether that fits: the one source of their resources.

    recipe, GPUs or none           ->  resources(), sync_backend()  ->  what each actor asks Ray for
    recipe, ModelFacts, a cluster  ->  plan()                       ->  Placement: memory by actor, why it does not fit
    Placement                      ->  render(), require()          ->  text for --dry-run; UserError

- Memory is an estimate, in GiB. An actor on GPUs takes it on each of its GPUs, any other actor on the host.
- An actor that reserves a share of a GPU may use that share of its memory.
- Resources are compared with the sums over the cluster. Ray finds the nodes for them.
"""

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trd_ray.config import EngineConfig, Recipe
from trd_ray.errors import UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight import memory as estimate
from trd_ray.preflight.memory import GIB

DEFAULT_GPU_GIB = 80.0

Job = Literal["train", "evaluate", "refine"]

# GiB of the accelerator types that Ray reports as `accelerator_type:X` and that come in one size.
_GPU_GIB = {
    "T4": 15, "V100": 16, "L4": 22, "A10G": 22, "A100-40G": 40, "L40S": 45, "A100-80G": 80, "H100": 80, "H200": 140,
    "B200": 178,
}  # fmt: skip


@dataclass(frozen=True)
class ActorSpec:
    """What each of `replicas` actors (or tasks) reserves from Ray."""

    name: str
    replicas: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class ActorPlan:
    spec: ActorSpec
    memory_gib: dict[str, float]  # what it holds -> how much, on each GPU of a replica or on the host
    host_gib: float  # a replica's; for one on GPUs what it takes to load the model
    gpu_share: float = 0.0  # how much of each of its GPUs it reserves
    note: str = ""
    first_gib: float = 0.0  # what the first replica takes of the host besides: rank 0 reads the models for all

    @property
    def on_gpu(self) -> bool:
        return self.spec.gpus > 0

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())


@dataclass(frozen=True)
class Placement:
    actors: list[ActorPlan]
    needs: dict[str, float]  # CPU, GPU, host memory in GiB
    has: dict[str, float]
    gpu_gib: float
    sync_backend: str
    object_store_gib: float  # of a local cluster, which is started with it
    reasons: list[str] = field(default_factory=list)  # why it does not fit, each with its remedy

    @property
    def fits(self) -> bool:
        return not self.reasons


def needs_sampler(recipe: Recipe, job: Job = "train") -> bool:
    """Whether there are engines that sample. On a corpus, which holds its rollouts, they only serve an evaluation."""
    return job != "train" or recipe.data.source == "problems" or recipe.evaluation.in_training


def needs_refiner(recipe: Recipe, job: Job = "train") -> bool:
    """Whether there is a pool of its own that refines."""
    made_here = job == "refine" or (job == "train" and recipe.data.source == "problems")
    return made_here and recipe.refines and recipe.placement != "shared"


def gpus_per_engine(engine: EngineConfig, gpus_available: bool) -> float:
    if engine.gpus is not None:
        return engine.gpus
    return float(engine.tensor_parallel) if gpus_available else 0.0


def gpus_per_rank(recipe: Recipe, gpus_available: bool) -> float:
    if recipe.learner.gpus is not None:
        return recipe.learner.gpus
    return 1.0 if gpus_available else 0.0


def resources(recipe: Recipe, gpus_available: bool, job: Job = "train") -> dict[str, ActorSpec]:
    """What the actors of a job reserve, by name. Stages of the stream and controllers reserve nothing.

    Verifier tasks come and go. One is counted, since one at a time is enough; `verify.max_tasks` is the most.
    """
    r = recipe
    specs = []
    if needs_sampler(r, job):
        specs.append(_engines("sampler", r.sampler, gpus_available))
    if needs_refiner(r, job):
        specs.append(_engines("refiner", r.refiner, gpus_available))
    if job == "train":
        specs.append(ActorSpec("learner", r.learner.workers, r.learner.cpus, gpus_per_rank(r, gpus_available)))
    specs.append(ActorSpec("verifier", 1, r.verify.cpus, 0.0))
    return {spec.name: spec for spec in specs}


def _engines(name: str, engine: EngineConfig, gpus_available: bool) -> ActorSpec:
    return ActorSpec(name, engine.replicas, engine.cpus, gpus_per_engine(engine, gpus_available))


def sync_backend(recipe: Recipe, gpus_available: bool) -> str:
    """How weights travel from the learner to the sampler. Raises UserError for a backend that cannot work."""
    if recipe.sync.lora == "adapter":
        return "adapter"
    asked = recipe.sync.backend
    per_engine = gpus_per_engine(recipe.sampler, gpus_available)
    per_rank = gpus_per_rank(recipe, gpus_available)
    workers = recipe.sampler.replicas * recipe.sampler.tensor_parallel
    share = per_engine / recipe.sampler.tensor_parallel + per_rank  # what the two reserve of a GPU that holds both
    on_gpus = per_engine > 0 and per_rank > 0
    colocated = on_gpus and share <= 1 and workers == recipe.learner.workers
    if asked == "auto":
        return "ipc" if colocated else "nccl" if on_gpus and share > 1 else "gloo"
    if asked in ("nccl", "ipc") and not on_gpus:
        raise UserError(
            f"sync.backend={asked} needs the sampler and the learner on GPUs, but sampler.gpus is {per_engine:g} and "
            f"learner.gpus is {per_rank:g}: set sync.backend=auto"
        )
    if asked == "ipc" and not colocated:
        raise UserError(
            "sync.backend=ipc needs every learner rank to share a GPU with one sampler worker, but there are "
            f"{workers} workers (sampler.replicas x sampler.tensor_parallel) for {recipe.learner.workers} ranks "
            f"(learner.workers), and the two reserve {share:g} of a GPU: make the counts equal and sampler.gpus and "
            "learner.gpus fractions that sum to at most 1, or set sync.backend=nccl"
        )
    if asked == "nccl" and share <= 1:
        raise UserError(
            "sync.backend=nccl needs the sampler and the learner on separate GPUs, but their shares sum to "
            f"{share:g} of one: set sampler.gpus and learner.gpus to whole numbers, or sync.backend=ipc"
        )
    return asked


def local_cluster(recipe: Recipe) -> dict[str, float]:
    """This machine and what of it is free, in the keys of ray.cluster_resources(), for a plan before Ray runs."""
    import psutil
    import torch

    gpus = torch.cuda.device_count()
    memory = psutil.virtual_memory()
    found = {
        "CPU": float(recipe.cluster.local_cpus or os.cpu_count() or 1),
        "GPU": float(gpus),
        "memory": max(0.0, memory.available - (recipe.cluster.object_store_gib or 0.0) * GIB),
        "free_gib": memory.available / GIB,
        "total_gib": memory.total / GIB,
    }
    if gpus:
        found["gpu_gib"] = torch.cuda.get_device_properties(0).total_memory / GIB
    return found


def plan(
    recipe: Recipe,
    student: ModelFacts,
    teacher: ModelFacts,
    cluster: Mapping[str, float],
    *,
    job: Job = "train",
    gpu_gib: float | None = None,
    longest_sequence_tokens: int = 0,
) -> Placement:
    """Place a recipe on a cluster, given as ray.cluster_resources() or local_cluster() give it.

    `gpu_gib` is the memory of a GPU. By default it is what the cluster tells of its accelerators, else 80.
    `longest_sequence_tokens` is the longest prompt and response together, which may exceed a micro-batch.
    """
    has = {"CPU": cluster.get("CPU", 0.0), "GPU": cluster.get("GPU", 0.0)}
    store = recipe.cluster.object_store_gib or estimate.object_store_gib(recipe, student)
    if recipe.cluster.memory_gib:
        has["memory"] = recipe.cluster.memory_gib
    elif "memory" in cluster:
        has["memory"] = min(cluster["memory"] / GIB, max(0.0, cluster.get("free_gib", math.inf) - store))
    gpu_gib = gpu_gib or _gpu_gib(cluster)
    specs = resources(recipe, has["GPU"] > 0, job)
    actors = []
    reasons = []
    backend, sends, refused = recipe.sync.backend, None, []
    if job == "train":
        try:
            backend = sends = sync_backend(recipe, has["GPU"] > 0)
        except UserError as e:
            refused.append(str(e))
    if "sampler" in specs:
        actors.append(_engine(specs["sampler"], recipe.sampler, recipe, student, gpu_gib, reasons, sends))
    if "refiner" in specs:
        follows = sends if recipe.teacher.follow != "frozen" else None
        actors.append(_engine(specs["refiner"], recipe.refiner, recipe, teacher, gpu_gib, reasons, follows))
    if "learner" in specs:
        on_gpu = specs["learner"].gpus > 0
        memory = estimate.rank_gib(recipe, student, teacher, on_gpu, longest_sequence_tokens, sends)
        host = estimate.rank_host_gib(recipe, student, teacher) if on_gpu else sum(memory.values())
        tokens = max(recipe.learner.tokens_per_micro_batch, longest_sequence_tokens)
        share = min(1.0, specs["learner"].gpus)
        first = estimate.reader_gib(recipe, student, teacher, on_gpu)
        actors.append(ActorPlan(specs["learner"], memory, host, share, f"micro-batches of {tokens} tokens", first))
    process = estimate.HOST_OVERHEAD_GIB["verifier"]
    note = f"tasks, up to {recipe.verify.max_tasks} at a time"
    actors.append(ActorPlan(specs["verifier"], {"process": process}, process, note=note))
    reasons += refused
    needs: dict[str, float] = {
        "CPU": sum(a.spec.replicas * a.spec.cpus for a in actors),
        "GPU": sum(a.spec.replicas * a.spec.gpus for a in actors),
        "memory": sum(a.spec.replicas * a.host_gib + a.first_gib for a in actors),
    }
    short = [*_shortages(actors, needs, has), *_memory_shortage(recipe, store, actors, needs, has, cluster)]
    reasons = [*short, *reasons, *_full_gpus(actors, gpu_gib)]
    return Placement(actors, needs, has, gpu_gib, backend, store, reasons)


def _gpu_gib(cluster: Mapping[str, float]) -> float:
    if "gpu_gib" in cluster:
        return cluster["gpu_gib"]
    types = (key.removeprefix("accelerator_type:") for key in cluster if key.startswith("accelerator_type:"))
    return float(min((_GPU_GIB[t] for t in types if t in _GPU_GIB), default=DEFAULT_GPU_GIB))


def _engine(
    spec: ActorSpec,
    engine: EngineConfig,
    recipe: Recipe,
    model: ModelFacts,
    gpu_gib: float,
    reasons: list[str],
    receives: str | None,
) -> ActorPlan:
    """The plan of one vLLM engine that `receives` weights by this backend. What it cannot serve goes to `reasons`."""
    name = spec.name
    if model.attention_heads % engine.tensor_parallel:
        reasons.append(
            f"{name}.tensor_parallel={engine.tensor_parallel} does not divide the {model.attention_heads} attention "
            f"heads of {model.path}: set it to a divisor"
        )
    on_gpu = spec.gpus > 0
    memory, kv_gib = estimate.engine_gib(engine, recipe, model, gpu_gib if on_gpu else None, receives)
    length = engine.max_model_len or model.max_positions
    sequence_gib = estimate.sequence_gib(engine, recipe, model, length)
    if kv_gib < sequence_gib:
        keys = f"{name}.tensor_parallel or {name}.memory_utilization" if on_gpu else f"{name}.cpu_kv_cache_gib"
        reasons.append(
            f"the {name}'s KV cache has {max(0.0, kv_gib):.1f} GiB, but one sequence of {length} tokens takes "
            f"{sequence_gib:.1f}: raise {keys}, or lower {name}.max_model_len"
        )
    note = f"cache for {max(0, math.floor(kv_gib / sequence_gib))} sequences of {length} tokens"
    if name == "sampler" and recipe.placement == "shared" and recipe.refines:
        note += ", of the refiner too" + " (without the adapter)" * recipe.refines_without_adapter
    host = estimate.HOST_OVERHEAD_GIB["engine"] if on_gpu else sum(memory.values())
    return ActorPlan(spec, memory, host, min(1.0, spec.gpus / engine.tensor_parallel), note)


def _shortages(actors: list[ActorPlan], needs: Mapping[str, float], has: Mapping[str, float]) -> list[str]:
    reasons = []
    for kind in ("CPU", "GPU"):
        if needs[kind] > has[kind] + 1e-6:
            each = {a.spec.name: (a.spec.replicas, a.spec.cpus if kind == "CPU" else a.spec.gpus) for a in actors}
            parts = ", ".join(f"{name} {n} x {amount:g}" for name, (n, amount) in each.items() if amount)
            keys = [f"{name}.{kind.lower()}s" for name, (_, amount) in each.items() if amount]
            keys = ["verify.cpus" if key == "verifier.cpus" else key for key in keys]
            several = "replicas and workers" if "learner" in each else "replicas"
            reasons.append(
                f"the placement needs {needs[kind]:g} {kind}s ({parts}), but the cluster has {has[kind]:g}: "
                f"lower {', '.join(keys)}, or the {several}"
            )
    return reasons


def _memory_shortage(
    recipe: Recipe,
    store: float,
    actors: list[ActorPlan],
    needs: Mapping[str, float],
    has: Mapping[str, float],
    cluster: Mapping[str, float],
) -> list[str]:
    free, total = cluster.get("free_gib"), cluster.get("total_gib")
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
    engines = [name for name in ("sampler", "refiner") if name in there]
    lower = [f"{name}.replicas" for name in engines if there[name].spec.replicas > 1]
    lower += [f"{name}.cpu_kv_cache_gib" for name in engines if not there[name].on_gpu and _cache_gib(there[name]) > 1]
    remedies = ["use a smaller model"]
    if "learner" in there and not there["learner"].on_gpu:
        lower.append("learner.tokens_per_micro_batch")
        if not recipe.learner.activation_checkpointing:
            remedies.append("set learner.activation_checkpointing=true")
    return [*remedies, f"lower {' or '.join(lower)}"] if lower else remedies


def _cache_gib(engine: ActorPlan) -> float:
    return engine.memory_gib.get("KV cache", 0.0)


def _full_gpus(actors: list[ActorPlan], gpu_gib: float) -> list[str]:
    reasons = []
    for actor in (a for a in actors if a.on_gpu):
        allowed = gpu_gib * actor.gpu_share
        if actor.total_gib > allowed * 1.001:
            largest = max(actor.memory_gib, key=lambda part: actor.memory_gib[part])
            name = actor.spec.name
            remedy = (
                "raise learner.workers, set learner.activation_checkpointing=true, or lower "
                "learner.tokens_per_micro_batch or learner.chunk_tokens"
                if name == "learner"
                else f"raise {name}.tensor_parallel or {name}.gpus, or lower {name}.memory_utilization"
            )
            reasons.append(
                f"the {name} needs about {actor.total_gib:.1f} GiB of each of its GPUs (most for {largest}: "
                f"{actor.memory_gib[largest]:.1f}), but may use {allowed:.1f}: {remedy}"
            )
    return reasons


def require(plan: Placement) -> None:
    """Raise UserError for a plan that does not fit."""
    if not plan.fits:
        raise UserError(*plan.reasons)


def render(plan: Placement) -> str:
    """The plan as text: a line for each actor, the sums, and yes or no with the reasons."""
    from rich.console import Console
    from rich.table import Table

    table = Table("actor", "count", "CPUs", "GPUs", "GiB each", "of which", box=None, pad_edge=False)
    for actor in plan.actors:
        s = actor.spec
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in actor.memory_gib.items() if gib >= 0.05)
        where = "GPU" if actor.on_gpu else "host"
        row = (s.name, str(s.replicas), f"{s.cpus:g}", f"{s.gpus:g}", f"{actor.total_gib:.1f} {where}")
        table.add_row(*row, f"{parts}; {actor.note}")
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    total = f"{plan.needs['CPU']:g} of {plan.has['CPU']:g} CPUs, {plan.needs['GPU']:g} of {plan.has['GPU']:g} GPUs"
    if plan.has["GPU"]:
        total += f" ({plan.gpu_gib:.0f} GiB each)"
    total += f", {plan.needs['memory']:.1f}" + (f" of {plan.has['memory']:.1f}" if "memory" in plan.has else "")
    verdict = "fits: yes" if plan.fits else "\n".join(["fits: no", *(f"  - {reason}" for reason in plan.reasons)])
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join([*lines, f"in all: {total} GiB of host memory; weights by {plan.sync_backend}", verdict])
