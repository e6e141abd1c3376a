"""Which actor runs on which node and GPUs, with what memory, and whether that fits: the object that is launched.

    recipe, GPUs or none              ->  resources(), sync_backend()  ->  what each actor asks Ray for
    recipe, ModelFacts, the machines  ->  plan()                       ->  Placement: a seat for each engine and rank,
                                                                           memory by actor, why it does not fit
    Placement                         ->  require()                    ->  UserError
                                          trd_ray.preflight.shown      ->  text or JSON for --dry-run

- Memory is an estimate, in GiB. An actor on GPUs takes it on each of its GPUs, any other actor on the host.
- An actor that reserves a share of a GPU may use that share of its memory.
- Resources are compared with the sums over the cluster, and then with each node: nothing is left for Ray to find.
- Who shares a GPU starts in turn (`Placement.turns`): vLLM takes for its own what of a GPU's memory changes while it
  starts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trd_ray.config import JUDGE_POOL, SAMPLER, Each, EngineConfig, Recipe, keys_of, of_each, teacher_of
from trd_ray.errors import UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight import memory as estimate
from trd_ray.preflight import shortages
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import UNKNOWN_GPU_GIB, Machine, one
from trd_ray.preflight.pools_needed import Job as Job
from trd_ray.preflight.pools_needed import needs_refiner as needs_refiner
from trd_ray.preflight.pools_needed import needs_sampler as needs_sampler
from trd_ray.preflight.pools_needed import pools as pools
from trd_ray.preflight.seats import LEARNER, Need, Seat, Unseated, seated


@dataclass(frozen=True)
class Placement:
    actors: list[ActorPlan]
    needs: dict[str, float]  # CPU, GPU, host memory in GiB
    has: dict[str, float]
    gpu_gib: float
    sync_backend: str
    object_store_gib: float  # of a local cluster, which is started with it
    reasons: list[str] = field(default_factory=list)  # why it does not fit, each with its remedy
    machines: tuple[Machine, ...] = ()
    seats: tuple[Seat, ...] = ()  # of engines and ranks; none where it does not fit

    @property
    def fits(self) -> bool:
        return not self.reasons

    @property
    def specs(self) -> dict[str, ActorSpec]:
        return {actor.spec.name: actor.spec for actor in self.actors}

    def seats_of(self, actor: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.actor == actor]

    def turns(self) -> dict[str, int]:
        """Pools and learner -> when they start: after all that share a GPU with them and come before them."""
        turns: dict[str, int] = {}
        for name in self.specs:  # pools, then the learner
            if name != "verifier":
                before = [turn for other, turn in turns.items() if self._meet(name, other)]
                turns[name] = max(before, default=-1) + 1
        return turns

    def _meet(self, one: str, other: str) -> bool:
        return bool(_gpus(self.seats_of(one)) & _gpus(self.seats_of(other)))


def _gpus(seats: Sequence[Seat]) -> set[tuple[int, int]]:
    """Machine and number of every GPU of the seats."""
    return {(seat.machine, gpu) for seat in seats for gpu in seat.gpus}


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
    specs = [_engines(pool, engine, gpus_available) for pool, engine in pools(r, job).items()]
    if job == "train":
        specs.append(ActorSpec("learner", r.learner.ranks, r.learner.cpus, gpus_per_rank(r, gpus_available)))
        if r.takes_turns:
            specs = [replace(s, rest=r.rest_of(s.name)) if s.name not in (LEARNER, JUDGE_POOL) else s for s in specs]
    specs.append(ActorSpec("verifier", 1, r.verify.cpus, 0.0))
    return {spec.name: spec for spec in specs}


def _engines(name: str, engine: EngineConfig, gpus_available: bool) -> ActorSpec:
    return ActorSpec(name, engine.bounds.start, engine.cpus, gpus_per_engine(engine, gpus_available))


def sync_backend(recipe: Recipe, gpus_available: bool, seats: Sequence[Seat] = ()) -> str:
    """How weights travel from the learner to the pools that follow it. Raises UserError for a way that cannot work.

    Shares of GPUs say what may work, and the seats, once there are some, whether it does.
    """
    if recipe.sync.lora == "adapter":
        return "adapter"
    asked = recipe.sync.backend
    per_engine = gpus_per_engine(recipe.sampler, gpus_available)
    per_rank = gpus_per_rank(recipe, gpus_available)
    workers = recipe.sampler.bounds.start * recipe.sampler.tensor_parallel
    share = per_engine / recipe.sampler.tensor_parallel + per_rank  # what the two reserve of a GPU that holds both
    on_gpus = per_engine > 0 and per_rank > 0
    colocated = on_gpus and share <= 1 and workers == recipe.learner.ranks
    met = _who_meets(recipe, seats)
    if asked == "auto":
        best = "ipc" if colocated else "nccl" if on_gpus and share > 1 else "gloo"
        return "gloo" if best in met else best
    if asked in ("nccl", "ipc") and not on_gpus:
        raise UserError(
            f"sync.backend={asked} needs the sampler and the learner on GPUs, but sampler.gpus is {per_engine:g} and "
            f"learner.gpus is {per_rank:g}: set sync.backend=auto"
        )
    if asked == "ipc" and not colocated:
        raise UserError(
            "sync.backend=ipc needs every learner rank to share a GPU with one sampler worker, but there are "
            f"{workers} workers (sampler.replicas x sampler.tensor_parallel) for {recipe.learner.ranks} ranks "
            f"(learner.workers), and the two reserve {share:g} of a GPU: make the counts equal and sampler.gpus and "
            "learner.gpus fractions that sum to at most 1, or set sync.backend=nccl"
        )
    if asked == "nccl" and share <= 1:
        raise UserError(
            "sync.backend=nccl needs the sampler and the learner on separate GPUs, but their shares sum to "
            f"{share:g} of one: set sampler.gpus and learner.gpus to whole numbers, or sync.backend=ipc"
        )
    if asked in met:
        raise UserError(met[asked])
    return asked


def _who_meets(recipe: Recipe, seats: Sequence[Seat]) -> dict[str, str]:
    """sync.backend -> why it cannot work between actors that sit like this."""
    ranks = [seat for seat in seats if seat.actor == LEARNER]
    engines = [seat for seat in seats if seat.actor in recipe.following]
    if not (ranks and engines):
        return {}
    of_ranks = [(seat.machine, seat.gpus) for seat in ranks]
    workers = [(seat.machine, (gpu,)) for seat in engines for gpu in seat.gpus[: _width(recipe, seat)]]
    found = {}
    if sorted(of_ranks) != sorted(workers):
        found["ipc"] = (
            "sync.backend=ipc needs every engine that follows the learner to share its GPU with one rank, and every "
            "rank with one such engine, but there is no way to seat them so: set sync.backend=auto"
        )
    if len(set(workers)) < len(workers) or of_ranks[0] in workers:
        found["nccl"] = (
            "sync.backend=nccl needs a GPU of its own for rank 0 and for each engine worker that follows the learner, "
            "but some share one: use whole GPUs, or set sync.backend=auto"
        )
    return found


def _width(recipe: Recipe, seat: Seat) -> int:
    return recipe.engines[seat.actor].tensor_parallel


def plan(
    recipe: Recipe,
    student: ModelFacts,
    teacher: Each[ModelFacts],
    cluster: Sequence[Machine] | Mapping[str, float],
    *,
    judge: ModelFacts | None = None,
    job: Job = "train",
    gpu_gib: float | None = None,
    longest_sequence_tokens: int = 0,
) -> Placement:
    """Place a recipe on machines, or on the sums of a cluster as ray.cluster_resources() gives them.

    Of the numbers of ranks that the recipe leaves open (learner.workers) the largest that fits is placed.
    `judge` is the model that judges; without one there is no pool of it, whatever the recipe says.
    `gpu_gib` is the memory of a GPU in place of what the machines tell of theirs.
    `longest_sequence_tokens` is the longest prompt and response together, which may exceed a micro-batch.
    """
    facts = _Facts(student, of_each(teacher), judge, longest_sequence_tokens)
    machines = [one(cluster)] if isinstance(cluster, Mapping) else list(cluster)
    fewest, most = recipe.learner.bounds.min, recipe.learner.bounds.max
    numbers = range(most if job == "train" else fewest, fewest, -1)
    plans = (_plan(recipe.with_ranks(ranks), facts, machines, job, gpu_gib) for ranks in numbers)
    fitting = next((found for found in plans if found.fits), None)
    return fitting or _plan(recipe.with_ranks(fewest), facts, machines, job, gpu_gib)


def _plan(recipe: Recipe, facts: "_Facts", cluster: list[Machine], job: Job, gpu_gib: float | None) -> Placement:
    student = facts.student
    store = recipe.cluster.object_store_gib or estimate.object_store_gib(recipe, student)
    machines = [_without_store(machine, store) for machine in cluster]
    if gpu_gib:
        machines = [replace(m, gpu_gib=gpu_gib, lacks="") if m.gpus else m for m in machines]
    unread = [m.lacks for m in machines if m.lacks]
    machines = [replace(m, gpus=0) if m.lacks else m for m in machines]
    has = _sums(recipe, machines)
    specs = resources(recipe, has["GPU"] > 0 or bool(unread), job)
    if facts.judge is None:
        specs.pop(JUDGE_POOL, None)
    backend, _ = _way(recipe, has["GPU"] > 0, job)
    smallest = min((m.gpu_gib for m in machines if m.gpus and m.gpu_gib), default=gpu_gib or UNKNOWN_GPU_GIB)
    actors = _actors(recipe, specs, facts, dict.fromkeys(specs, smallest), backend, [])
    needs = _sums_of(actors)
    reasons = shortages.of_gpu_counts(recipe, specs) + shortages.of_builds(recipe, specs, machines)
    reasons += shortages.of_sums(actors, needs, has) + shortages.of_memory(recipe, store, actors, needs, has, machines)
    seats: list[Seat] = []
    if not reasons:
        found = seated(needs_of(actors), machines, counts_memory=not recipe.cluster.memory_gib)
        if isinstance(found, Unseated):
            reasons.append(shortages.of_seat(found, specs[found.need.actor]))
        else:
            seats = [seat for seat in found if seat.actor != "verifier"]
    gib = {name: _smallest(name, seats, machines, smallest) for name in specs}
    lacking: list[str] = []
    backend, refused = _way(recipe, has["GPU"] > 0, job, seats)
    actors = _actors(recipe, specs, facts, gib, backend, lacking)
    reasons += [*lacking, *refused, *shortages.of_gpu_memory(actors, gib)]
    if reasons:
        reasons = [*unread, *reasons]
        seats = []
    return Placement(
        actors, _sums_of(actors), has, smallest, backend or recipe.sync.backend, store, reasons, tuple(machines),
        tuple(seats),
    )  # fmt: skip


def _without_store(machine: Machine, store_gib: float) -> Machine:
    """The machine on which Ray is still to start, with what its object store leaves; any other as it is."""
    if machine.memory_gib is None or machine.free_gib is None:
        return machine
    return replace(machine, memory_gib=min(machine.memory_gib, max(0.0, machine.free_gib - store_gib)))


def _way(recipe: Recipe, gpus: bool, job: Job, seats: Sequence[Seat] = ()) -> tuple[str | None, list[str]]:
    """How weights travel, None where they do not, and why they cannot as they are asked to."""
    if job != "train":
        return None, []
    try:
        return sync_backend(recipe, gpus, seats), []
    except UserError as e:
        return None, [str(e)]


def _sums_of(actors: Sequence[ActorPlan]) -> dict[str, float]:
    """What the actors need in all."""
    return {
        "CPU": sum(a.spec.replicas * a.spec.cpus for a in actors),
        "GPU": sum(a.spec.replicas * a.spec.gpus for a in actors),
        "memory": sum(a.spec.replicas * a.host_gib + a.first_gib for a in actors),
    }


def _sums(recipe: Recipe, machines: Sequence[Machine]) -> dict[str, float]:
    """What the machines have in all; no memory where that of one is not known."""
    has = {"CPU": sum(m.cpus for m in machines), "GPU": float(sum(m.gpus for m in machines))}
    known = [m.memory_gib for m in machines if m.memory_gib is not None]
    if recipe.cluster.memory_gib:
        has["memory"] = recipe.cluster.memory_gib
    elif len(known) == len(machines):
        has["memory"] = sum(known)
    return has


@dataclass(frozen=True)
class _Facts:
    """What is known of the models and the data."""

    student: ModelFacts
    teachers: Mapping[str, ModelFacts]
    judge: ModelFacts | None
    longest_sequence_tokens: int


def _actors(
    recipe: Recipe,
    specs: Mapping[str, ActorSpec],
    facts: _Facts,
    gpu_gib: Mapping[str, float],
    sends: str | None,
    reasons: list[str],
) -> list[ActorPlan]:
    """The memory of each actor on GPUs of the sizes `gpu_gib`, where weights travel by the backend `sends`.

    What an engine cannot serve goes to `reasons`.
    """
    student, teacher = facts.student, facts.teachers
    actors = []
    for name, engine in recipe.engines.items():
        if name in specs:
            fixed = {SAMPLER: student, JUDGE_POOL: facts.judge}
            model = fixed.get(name) or teacher[teacher_of(name)]
            follows = sends if name in recipe.following else None
            actors.append(_engine(specs[name], engine, recipe, model, gpu_gib[name], follows, reasons))
    if LEARNER in specs:
        on_gpu = specs[LEARNER].gpus > 0
        memory = estimate.rank_gib(recipe, student, teacher, on_gpu, facts.longest_sequence_tokens, sends)
        host = estimate.rank_host_gib(recipe, student, teacher) if on_gpu else sum(memory.values())
        tokens = max(recipe.learner.tokens_per_micro_batch, facts.longest_sequence_tokens)
        share = min(1.0, specs[LEARNER].gpus)
        least = sum(memory.values()) / share if on_gpu else 0.0
        note = f"micro-batches of {tokens} tokens"
        first = estimate.reader_gib(recipe, student, teacher, on_gpu)
        actors.append(ActorPlan(specs[LEARNER], memory, host, share, note, least, first))
    process = estimate.HOST_OVERHEAD_GIB["verifier"]
    note = f"tasks, up to {recipe.verify.max_tasks} at a time"
    actors.append(ActorPlan(specs["verifier"], {"process": process}, process, note=note))
    return actors


def needs_of(actors: Sequence[ActorPlan]) -> list[Need]:
    """What each engine, each rank and the verifier needs of one node."""
    return [
        Need(
            a.spec.name, number, a.spec.cpus, a.spec.gpus, a.host_gib + (a.first_gib if number == 0 else 0.0),
            a.least_gpu_gib,
        )
        for a in actors
        for number in range(a.spec.replicas)
    ]  # fmt: skip


def _smallest(name: str, seats: Sequence[Seat], machines: Sequence[Machine], default: float) -> float:
    """GiB of the smallest GPU on which an actor of this name sits."""
    found = [machines[seat.machine].gpu_gib for seat in seats if seat.actor == name and seat.gpus]
    return min((gib for gib in found if gib), default=default)


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
    memory, kv_gib = estimate.engine_gib(engine, recipe, model, gpu_gib if on_gpu else None, receives)
    length = engine.max_model_len or model.max_positions
    sequence_gib = estimate.sequence_gib(engine, recipe, model, length)
    if kv_gib < sequence_gib:
        keys = f"{group}.tensor_parallel or {group}.memory_utilization" if on_gpu else f"{group}.cpu_kv_cache_gib"
        reasons.append(
            f"the {name}'s KV cache has {max(0.0, kv_gib):.1f} GiB, but one sequence of {length} tokens takes "
            f"{sequence_gib:.1f}: raise {keys}, or lower {group}.max_model_len"
        )
    note = f"cache for {max(0, math.floor(kv_gib / sequence_gib))} sequences of {length} tokens"
    if name == SAMPLER and recipe.placement == "shared" and recipe.refines:
        note += ", of the refiner too" + " (without the adapter)" * recipe.refines_without_adapter
    if engine.bounds.min < engine.bounds.max:
        note += f"; {engine.bounds.min} to {engine.bounds.max} engines, as steps need them"
    host = estimate.HOST_OVERHEAD_GIB["engine"] if on_gpu else sum(memory.values())
    share = min(1.0, spec.gpus / engine.tensor_parallel)
    least = _least_gpu_gib(engine, memory, sequence_gib, share) if on_gpu else 0.0
    return ActorPlan(spec, memory, host, share, note, least)


def _least_gpu_gib(engine: EngineConfig, memory: Mapping[str, float], sequence_gib: float, share: float) -> float:
    """GiB of a GPU on which vLLM's part has room for one sequence, and the rest of the share for a weight sync."""
    receiving = memory.get("weight sync", 0.0)
    fixed = sum(memory.values()) - memory.get("KV cache", 0.0) - receiving
    least = (fixed + sequence_gib) / engine.memory_utilization
    rest = share - engine.memory_utilization
    return max(least, receiving / rest) if rest > 0 else least


def require(plan: Placement) -> None:
    """Raise UserError for a plan that does not fit."""
    if not plan.fits:
        raise UserError(*plan.reasons)
