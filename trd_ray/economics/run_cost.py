"""A whole run from its recipe and its placement: seconds of a step, hours, tokens a second, idle shares, money.

    Case (recipe, models, placement, lengths | a recorded run)  ->  run_cost()  ->  RunCost

A pool is the sum of its engines; several teachers count as one refiner of all their engines and the largest model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trd_ray.config import SAMPLER, role_of
from trd_ray.economics import constants as c
from trd_ray.economics import learning
from trd_ray.economics import step_cost as steps
from trd_ray.economics.batching import EngineRequest, serve_pool
from trd_ray.economics.calibration import ModelledSpeeds
from trd_ray.economics.case import Case
from trd_ray.economics.engine_speed import EngineSpeed, on_cpu, on_gpu
from trd_ray.economics.learning import HowItTrains, LearnerSpeed, LearnerWork, Trained
from trd_ray.economics.model_costs import ModelCosts, model_costs
from trd_ray.economics.step_cost import PoolSetup, Setup, StepCost
from trd_ray.economics.workload import Row, assumed
from trd_ray.preflight.memory import BYTES, GIB, adapter_parameters

SHORT_TOKENS, ROWS_OF_SHORT = 512, 32  # stream.rows_per_block, where it is not set
FP8 = 1


@dataclass(frozen=True)
class PoolCost:
    engines: int
    gpus: float  # in all
    busy: float  # share of its time
    tokens_s: float


@dataclass(frozen=True)
class RunCost:
    step: StepCost
    pools: dict[str, PoolCost]
    steps: int | None
    rollouts: int  # of a step
    gpus: float
    idle: float | None  # share of all GPUs' time; None without GPUs
    mfu: float | None  # of the learner, without what it computes twice; None without GPUs
    verifying_s: float  # that verdicts of a step take on all their tasks; 0.0 where no run says how long one takes
    evaluations: int
    evaluation_s: float  # of one
    lengths: str
    machine: str

    @property
    def training_h(self) -> float | None:
        return None if self.steps is None else self.steps * self.step.step_s / 3600

    @property
    def evaluating_h(self) -> float:
        return self.evaluations * self.evaluation_s / 3600

    @property
    def hours(self) -> float | None:
        """From the start of the engines to the last score."""
        if self.training_h is None:
            return None
        first = self.step.refine_ends_s + self.step.train_s - self.step.step_s  # nothing overlaps the first step
        start = (c.START_S if self.gpus else 60.0) + max(0.0, first)
        return self.training_h + self.evaluating_h + start / 3600

    def price(self, a_gpu_hour: float) -> float | None:
        return None if self.hours is None else self.hours * self.gpus * a_gpu_hour


def run_cost(case: Case, draws: int = c.DRAWS) -> RunCost:
    r = case.recipe
    setup = setup_of(case)
    lengths = case.lengths
    costs, works, responses = [], [], []
    speed, ranks = learner_speed(case), case.count("learner")
    for seed in range(draws):
        rows = chosen(case, lengths.rows(r.rollouts_per_step, seed))
        earlier = chosen(case, lengths.rows(r.rollouts_per_step, 1000 + seed))
        examples = [trained(case, row) for row in (rows[:: r.sampler.n] if r.train.subset == "best" else rows)]
        work = work_of(case, examples)
        probed = learning.probe_flops(_mean_raw(rows), r.sync.probe_rows, _costs(case).student) / speed.flops
        on_policy = r.stream.max_staleness != "never" and not (case.measured and case.measured.learner)
        train_s = (learning.training_s(work, speed, ranks) + (probed if on_policy else 0.0)) if ranks else 0.0
        if r.data.source == "corpus":
            costs.append(steps.of_a_corpus(setup, train_s, rows))
        else:
            costs.append(steps.step_cost(setup, rows, train_s, earlier))
        works.append(work)
        responses.append(sum(one.response for one in examples))
    step = steps.mean_cost(costs)
    gpus = case.gpus
    peak = case.gpu[0].flops * ranks if gpus else 0.0
    flops = sum(work.flops - work.again for work in works) / draws
    pools = _pool_costs(case, setup, step, fmean(responses))
    busy = sum(pool.busy * pool.gpus for pool in pools.values())
    return RunCost(
        step=step,
        pools=pools,
        steps=case.steps,
        rollouts=r.rollouts_per_step,
        gpus=gpus,
        idle=max(0.0, 1 - busy / gpus) if gpus else None,
        mfu=flops / (step.train_s * peak) if peak and step.train_s else None,
        verifying_s=_verifying_s(case),
        evaluations=_evaluations(case),
        evaluation_s=_evaluation_s(case, setup),
        lengths=lengths.said,
        machine=_machine(case),
    )


def chosen(case: Case, rows: Sequence[Row]) -> list[Row]:
    """The rows with refinements where the recipe makes some: of a share of them, where it says so.

    Where a row has several candidates, other rows' refinements say how long those are that do not train.
    """
    r = case.recipe
    share = r.refined_share if r.train.trajectory != "repair" else 1.0
    refined = rows[: round(share * len(rows))]
    more = r.most_refinements - 1
    found = []
    for i, row in enumerate(_prompted(case, row) for row in refined):
        like = (refined[(i + j) % len(refined)].refined for j in range(1, more + 1))
        found.append(row._replace(others=(*row.others, *like)[:more]))
    return [*found, *(row._replace(refine_prompt=0, refined=0, others=()) for row in rows[len(refined) :])]


def _prompted(case: Case, row: Row) -> Row:
    """The row with what its refiner reads: without an attempt, or with one that it goes on with."""
    begins = case.recipe.refiner.begins
    if begins == "attempt" or not row.refine_prompt:
        return row
    return row._replace(refine_prompt=_vanilla(case, row) + (row.raw if begins == "relay" else 0))


def trained(case: Case, row: Row) -> Trained:
    """What the learner gets of a row: the refinement, where there is one, below the teacher's view of it."""
    r = case.recipe
    refines = bool(row.refine_prompt) and "y_r" in r.trains_on
    response = row.kept + row.refined if refines else row.raw
    if r.train.trajectory == "reference":
        response = min(c.REFERENCE_TOKENS, r.sampler.response_tokens)
    shown = row.refine_prompt if refines and r.view_of("y_r") == "refine" else _vanilla(case, row)
    return Trained(row.prompt, shown, math.ceil(r.loss.first_share * response))


def _vanilla(case: Case, row: Row) -> int:
    """Tokens of the teacher's view without an attempt."""
    return row.prompt + (c.REFERENCE_TOKENS if case.recipe.shows_reference and not case.measured else 0)


@dataclass(frozen=True)
class _Costs:
    student: ModelCosts
    teacher: ModelCosts


def _costs(case: Case) -> _Costs:
    width = BYTES[case.recipe.learner.dtype]
    largest = max(case.teachers.values(), key=lambda facts: facts.parameters)
    return _Costs(model_costs(case.student, width), model_costs(largest, width))


def how_it_trains(case: Case) -> HowItTrains:
    learner = case.recipe.learner
    trained = adapter_parameters(case.student, learner.lora.rank) if learner.lora else case.student.parameters
    return HowItTrains(
        adapters=learner.lora is not None,
        checkpointing=learner.activation_checkpointing,
        updates=learner.updates_per_step,
        micro_batch_tokens=learner.tokens_per_micro_batch,
        trained_numbers=trained,
        ranks=case.count("learner"),
    )


def work_of(case: Case, rows: Sequence[Trained]) -> LearnerWork:
    costs = _costs(case)
    teacher = costs.teacher if case.recipe.loss.has_teacher else None
    return learning.work(rows, costs.student, teacher, how_it_trains(case))


def learner_speed(case: Case, modelled: bool = False) -> LearnerSpeed:
    if case.on_gpu:
        speed = learning.on_gpu_speed(case.gpu[0], case.several_nodes)
    else:
        speed = learning.on_cpu_speed(min(_rank_threads(case), case.cores / max(1, case.count("learner"))))
    found = case.measured
    if modelled or not (found and found.learner and found.slower):
        return speed
    return replace(found.learner, flops=speed.flops / found.slower["learner"], link_bytes_s=speed.link_bytes_s)


def _rank_threads(case: Case) -> int:
    """Ray sets OMP_NUM_THREADS of an actor to the CPUs that it reserves."""
    return max(1, math.floor(case.recipe.learner.cpus))


def engine_speed(case: Case, role: str, modelled: bool = False) -> EngineSpeed:
    """Of a pool's engines, as much slower than the model says as those of the run that was measured.

    `modelled` leaves the run out. Engines that a run did not have (another width, cache or placement) differ from its
    own as the model has it.
    """
    speed, found = _modelled_engine(case, role).slower(_crowd(case, role)), case.measured
    known = found and (found.sampler if role == SAMPLER else found.refiner)
    if modelled or not (found and found.slower and known):
        return speed
    return replace(speed.slower(found.slower["sampler" if role == SAMPLER else "refiner"]), request_s=known.request_s)


def _modelled_engine(case: Case, role: str) -> EngineSpeed:
    r = case.recipe
    pool = r.sampler if role == SAMPLER else next(iter(r.by_teacher.values())).refiner
    facts = case.student if role == SAMPLER else max(case.teachers.values(), key=lambda one: one.parameters)
    width = BYTES[pool.dtype or r.learner.dtype]
    costs = model_costs(facts, width)
    actor = next((a for a in case.placed.actors if role_of(a.spec.name) == role), None)
    cache = actor.memory_gib.get("KV cache", 0.0) if actor else 0.0
    if case.on_gpu:
        kv = FP8 if str(pool.extra.get("kv_cache_dtype", "")).startswith("fp8") else None
        speed = on_gpu(
            costs, case.gpu[0], tensor_parallel=pool.tensor_parallel, cache_gib=cache,
            most_sequences=pool.max_concurrent, kv_width=kv,
        )  # fmt: skip
        adapted = role == SAMPLER and r.sync.lora == "adapter" and r.learner.lora
        return speed.slower(c.ADAPTER_SLOWER) if adapted else speed
    return on_cpu(costs, case.cores, cache_gib=cache, most_sequences=pool.max_concurrent)


def base_of(case: Case) -> ModelledSpeeds:
    """The model's speeds for this case, which a recorded run is compared with."""
    return ModelledSpeeds(
        engine_speed(case, SAMPLER, True), engine_speed(case, "refiner", True), learner_speed(case, True),
        case.count("learner"),
    )  # fmt: skip


def setup_of(case: Case) -> Setup:
    r = case.recipe
    measured = case.measured
    trains = case.count("learner") > 0
    engines = case.count(SAMPLER)
    sampler = PoolSetup(engines, engine_speed(case, SAMPLER))
    refiner = None
    if r.refines:
        count = case.count("refiner") or engines
        alone = PoolSetup(count, engine_speed(case, "refiner"))
        refiner = sampler if r.shares_engines else alone
    adapter = r.learner.lora if r.sync.lora == "adapter" else None
    block = r.stream.rows_per_block or (ROWS_OF_SHORT if r.sampler.response_tokens <= SHORT_TOKENS else 1)
    numbers = adapter_parameters(case.student, adapter.rank) if adapter else case.student.parameters
    sync_s = steps.sync_seconds(case.placed.sync_backend, numbers * BYTES[r.learner.dtype], case.on_gpu)
    scheduling = c.SCHEDULING_S if case.on_gpu else c.CPU_SCHEDULING_S
    return Setup(
        placed=r.placement,
        sampler=sampler,
        refiner=refiner,
        staleness=r.stream.max_staleness if trains else "never",
        drains=r.sync.in_flight == "drain" and not adapter,
        block=block,
        samples=r.sampler.n,
        sync_s=_or(measured and measured.sync_s, sync_s),
        scheduling_s=_or(measured and measured.scheduling_s, scheduling),
        verify_s=_or(measured and measured.verify_s, c.CPU_VERIFY_S),
        rows_a_second=c.ROWS_A_SECOND * block,
        reads_again=r.sync.in_flight == "keep" and not adapter,
        turn_s=_or(measured and measured.turn_s, _turn_s(case)),
        share=case.on_gpu and not r.takes_turns and any(0 < a.spec.gpus < 1 for a in case.placed.actors),
        learner_cores=max(1, case.count("learner")) * _rank_threads(case),
        cores=math.inf if case.on_gpu else case.cores,
    )


def _turn_s(case: Case) -> float:
    """timeshare: what it takes engines and learner to change places, there and back. A CPU has nothing to free."""
    if not (case.recipe.takes_turns and case.on_gpu):
        return 0.0
    kept = moved = 0.0
    for actor in case.placed.actors:
        if actor.spec.rest == "offload":
            kept += actor.memory_gib["weights"]
        elif actor.spec.name == "learner" and actor.rest_gib:
            held = {
                name: size for name, size in actor.memory_gib.items() if name in ("weights", "optimizer", "average")
            }
            moved += sum(size - actor.rest_gib.get(name, 0.0) for name, size in held.items())
    return steps.turn_seconds(case.gpu[0], kept * GIB, moved * GIB)


def _verifying_s(case: Case) -> float:
    """Seconds of a step's verdicts, if as many tasks as may be are at them all the time."""
    m, verify = case.measured, case.recipe.verify
    if not (m and m.verdicts_s):
        return 0.0
    known = [machine.cpus for machine in case.placed.machines if math.isfinite(machine.cpus)]
    room = sum(known) // verify.cpus if known and verify.cpus else math.inf
    return m.verdicts_s * case.recipe.rollouts_per_step / max(1, min(verify.max_tasks, room))


def _crowd(case: Case, role: str) -> float:
    """How many engines of a pool work at a time on what one of them would have alone: a core, or its GPUs."""
    if not case.on_gpu:
        return max(1.0, case.count(role) / case.cores)
    wide = case.recipe.sampler.tensor_parallel if role == SAMPLER else case.recipe.refiner.tensor_parallel
    gpus = case.gpus_of(role)
    return max(1.0, case.count(role) * wide / gpus) if gpus else 1.0


def _or(found: float | None, otherwise: float) -> float:
    return otherwise if found is None else found


def _mean_raw(rows: Sequence[Row]) -> float:
    return sum(row.prompt + row.raw for row in rows) / max(1, len(rows))


def _pool_costs(case: Case, setup: Setup, step: StepCost, trained_tokens: float) -> dict[str, PoolCost]:
    tokens = {"sampler": step.sampled_tokens, "refiner": step.refined_tokens}
    if setup.refiner is setup.sampler:
        tokens["sampler"] += step.refined_tokens
    tokens["learner"] = trained_tokens
    return {
        name: PoolCost(case.count(name), case.gpus_of(name), step.busy(name), tokens[name] / step.step_s)
        for name in step.busy_s
        if case.count(name)
    }


def _evaluations(case: Case) -> int:
    e = case.recipe.evaluation
    if not e.names:
        return 0
    between = (case.steps - 1) // e.every_steps if e.every_steps and case.steps else 0
    return e.before + e.after + between


def _evaluation_s(case: Case, setup: Setup) -> float:
    """The sampler's engines answer all held-out problems at once."""
    e = case.recipe.evaluation
    problems = sum(case.held_out.get(name, 0) * e.of(name).samples for name in e.names)
    if not problems:
        return 0.0
    most = e.response_tokens if e.max_response_tokens else case.recipe.sampler.response_tokens
    rows = _evaluation_lengths(case, most, problems)
    return serve_pool(rows, max(1, setup.sampler.engines), setup.sampler.speed).end_s


def _evaluation_lengths(case: Case, most: int, n: int) -> list[EngineRequest]:
    if case.measured:
        drawn = replace(case.measured.lengths, most_raw=most).rows(n, 0)
        return [EngineRequest(0.0, row.prompt, row.raw) for row in drawn]
    r = case.recipe
    usual = assumed(most, 1, r.refiner.prompt_tokens, reference=False, prompt=case.prompt_tokens)
    longer = replace(usual, raw=replace(usual.raw, median=min(usual.raw.median * c.EVALUATION_LONGER, most)))
    return [EngineRequest(0.0, row.prompt, row.raw) for row in longer.rows(n, 0)]


def _machine(case: Case) -> str:
    if not case.on_gpu:
        return f"{case.cores:g} CPU cores"
    gpu, is_assumed = case.gpu
    return f"{gpu.name}" + (" (assumed from their memory)" if is_assumed else "")
