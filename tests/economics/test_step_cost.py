"""What binds a step, and that it agrees with an independent simulation of the same engines."""

from dataclasses import replace

import pytest

from trd_ray.economics import constants as c
from trd_ray.economics import learning
from trd_ray.economics.engine_speed import EngineSpeed, gpu_of, on_gpu
from trd_ray.economics.learning import HowItTrains, Trained
from trd_ray.economics.model_costs import model_costs
from trd_ray.economics.step_cost import PoolSetup, Setup, blocks, mean_cost, step_cost, sync_seconds, turn_seconds
from trd_ray.economics.workload import Row, assumed
from trd_ray.known_models import known
from trd_ray.record import bounds

EVEN = EngineSpeed(
    launch_s=0.01, weights_s=0.0, product_s=0.0, sequence_s=0.0, cached_token_s=0.0, prefill_token_s=0.0,
    prefill_square_s=0.0,
)  # fmt: skip
ROWS = [Row(10, 100, 120, 50), Row(10, 400, 420, 50), Row(10, 200, 220, 100)]
SETUP = Setup(
    placed="separate", sampler=PoolSetup(1, EVEN), refiner=PoolSetup(1, EVEN), staleness=0, drains=True, block=1,
    samples=1, sync_s=0.5, scheduling_s=0.25, verify_s=0.0, rows_a_second=1e9, reads_again=False,
)  # fmt: skip


def step(rows=ROWS, train_s=3.0, **changes):
    return step_cost(replace(SETUP, **changes), rows, train_s)


def test_on_policy_everything_comes_one_after_the_other():
    found = step()
    assert found.sample_s == pytest.approx(4.0) and found.refine_ends_s == pytest.approx(4.5)
    assert found.step_s == pytest.approx(4.5 + 3.0 + 0.5 + 0.25)


def test_blocks_keep_refining_from_beginning():
    assert blocks([1.0, 4.0, 2.0, 3.0, 5.0], 2) == [4.0, 4.0, 3.0, 3.0, 5.0]
    assert step(block=3).refine_ends_s == pytest.approx(4.0 + 1.0)


def test_one_step_of_staleness_hides_training_behind_sampling():
    assert step(staleness=1).step_s == pytest.approx(4.0 + 0.75)
    found = step(staleness=1, train_s=9.0)
    assert found.step_s == pytest.approx(9.0 + 0.75), "what is refined in 4.5 s waits for the training before it"
    assert step(staleness=1, train_s=3.9).step_s == pytest.approx((4.5 + 3.9) / 2 + 0.75)


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("in_flight", ["drain", "keep"])
@pytest.mark.parametrize("train_s", [0.5, 3.0, 3.9, 9.0])
def test_a_step_is_as_long_as_the_bound_that_summaries_measure_against(staleness, in_flight, train_s):
    found = step(staleness=staleness, drains=in_flight == "drain", train_s=train_s)
    slowest = bounds.StepSeconds(4.0, 0.5, train_s)
    full = 2.0 if in_flight == "keep" else 0.0  # the sampler's mean work, of rollouts under way side by side
    assert found.step_s - 0.75 == pytest.approx(max(full, bounds.bound(slowest, staleness, in_flight)), rel=0.05)


def test_rollouts_that_go_on_with_new_weights_are_bound_by_work_and_by_the_slowest_row():
    found = step(staleness=1, drains=False)
    assert found.step_s == pytest.approx((4.5 + 3.0) / 2 + 0.75)
    assert step(staleness=3, drains=False).step_s == pytest.approx(3.0 + 0.75), "training binds"


def test_without_syncs_the_fullest_pool_binds_alone():
    found = step(staleness="never", train_s=1.0)
    assert found.sync_s == 0 and found.step_s == pytest.approx(max(2.0, 1.0) + 0.25, rel=0.05)


def test_one_pool_refines_while_it_samples():
    shared = PoolSetup(1, EVEN)
    found = step(placed="shared", sampler=shared, refiner=shared)
    assert found.refine_ends_s == pytest.approx(4.5), "an even engine gives nobody less for others' requests"


def test_in_turn_is_the_sum_of_the_phases():
    found = step(placed="timeshare", turn_s=2.0, block=3)
    assert found.step_s == pytest.approx(4.0 + 1.0 + 3.0 + 0.5 + 0.25 + 2.0)
    assert found.busy_s == pytest.approx({"sampler": 4.0, "refiner": 1.0, "learner": 3.0})


def test_in_turn_one_pool_refines_while_it_samples():
    shared = PoolSetup(1, EVEN)
    found = step(placed="timeshare", sampler=shared, refiner=shared, turn_s=2.0)
    assert found.step_s == pytest.approx(4.5 + 3.0 + 0.5 + 0.25 + 2.0) and "refiner" not in found.busy_s


def test_two_models_awake_on_a_gpu_share_its_time_while_both_have_work():
    found = step(placed="timeshare", turn_s=2.0)
    engines = found.busy_s["sampler"] + found.busy_s["refiner"]
    assert found.refine_ends_s == pytest.approx(engines) == pytest.approx(4.0 + 2.0, abs=0.2)
    assert found.step_s > step(placed="timeshare", turn_s=2.0, block=3).step_s, "refinements by ones fill no batch"


def test_in_turn_engines_of_a_cpu_are_at_work_side_by_side():
    alone, turns = step(cores=64.0), step(placed="timeshare", turn_s=0.5, cores=64.0)
    assert turns.step_s == pytest.approx(alone.step_s + 0.5) and turns.busy_s == alone.busy_s
    offline = step(placed="timeshare", cores=64.0, staleness="never")
    assert offline.sync_s == 0 and offline.step_s == pytest.approx(alone.step_s - 0.5), "without the sync"


def test_changing_places_costs_what_is_unmapped_and_mapped_and_what_goes_over_the_bus():
    h100, a100 = gpu_of("H100", 80)[0], gpu_of("A100-80G", 80)[0]
    fixed = c.REST_S + c.WAKE_S
    assert turn_seconds(h100, 0, 0) == fixed
    assert turn_seconds(h100, 16.4e9, 0) - fixed == pytest.approx(2 * 16.4e9 / 55.6e9, rel=0.01)
    assert turn_seconds(a100, 16.4e9, 0) - fixed == pytest.approx(4 * 16.4e9 / 55.6e9, rel=0.01)
    assert turn_seconds(h100, 0, 12e9) - fixed == pytest.approx(2 * 1.2), "memory that is not pinned"


def test_a_sync_takes_its_calls_and_its_bytes():
    weights = 2 * 8.19e9
    assert sync_seconds("nccl", weights, True) == sync_seconds("ipc", weights, True) == pytest.approx(2.52, abs=0.01)
    assert sync_seconds("gloo", weights, True) == pytest.approx(1.1 + weights / 2.9e9)
    assert sync_seconds("adapter", 350e6, True) == pytest.approx(1.22, abs=0.01)


def test_processes_of_a_cpu_share_its_cores():
    alone, shared = (step(staleness=1, train_s=3.9, cores=n) for n in (64.0, 1.5))
    assert alone.step_s == pytest.approx(step(staleness=1, train_s=3.9).step_s)
    engines = shared.busy_s["sampler"] + shared.busy_s["refiner"]
    assert shared.step_s - 0.75 == pytest.approx((c.CPU_ENGINE_CORES * engines + 3.9 + c.CPU_CONTROL_S) / 1.5)
    assert shared.step_s > alone.step_s
    crowded = step(cores=2.0, learner_cores=4.0)
    assert crowded.step_s == pytest.approx(step().step_s), "ranks that share cores are slower already"


def test_who_shares_a_gpu_has_the_sum_of_the_work():
    found = step(share=True)
    assert found.step_s == pytest.approx(4.0 + 1.9 + 3.0 + 0.75, abs=0.15), "refining slows the sampling beside it"
    assert step(share=True, staleness=1).step_s == pytest.approx(found.step_s, rel=0.1), "and staleness hides nothing"


def test_rows_without_refinements_wait_for_no_refiner():
    plain = [row._replace(refine_prompt=0, refined=0) for row in ROWS]
    found = step(plain, refiner=None)
    assert found.step_s == pytest.approx(4.0 + 3.0 + 0.75) and found.refine_s == 0 and "refiner" not in found.busy_s


def test_the_control_plane_lets_so_many_rows_through():
    assert step(rows_a_second=0.1).step_s == pytest.approx(30.0)


# Seconds of a step by an independent simulation (continuous batching in chunks of 64 tokens, mean of 3 draws of the
# lengths): a simulation too, of the same machine, and no measurement. 8 H100; engines, engines, ranks.
SIMULATED = {
    ("8B", (3, 1, 4), "on policy", 128, 32): 431,
    ("8B", (3, 1, 4), "on policy", 128, 1): 321,
    ("8B", (3, 1, 4), "drain", 128, 32): 264,
    ("8B", (5, 2, 1), "drain", 128, 1): 225,
    ("8B", (5, 2, 1), "keep", 128, 1): 157,
    ("8B", (5, 2, 1), "on policy", 512, 1): 824,
    ("8B", (5, 2, 1), "drain", 512, 1): 499,
    ("8B", (8, 8, 8), "in turn", 128, 1): 255,
    ("8B", (8, 8, 8), "in turn", 512, 1): 478,
    ("8B", (7, 7, 1), "shared", 512, 1): 441,
    ("8B", (7, 7, 1), "shared, on policy", 512, 1): 796,
    ("1.7B", (4, 2, 2), "on policy", 128, 32): 246,
    ("1.7B", (4, 2, 2), "on policy", 128, 1): 189,
    ("1.7B", (4, 2, 2), "drain", 128, 32): 130,
    ("1.7B", (5, 2, 1), "drain", 128, 1): 139,
    ("1.7B", (5, 2, 1), "keep", 128, 1): 94,
    ("1.7B", (5, 2, 1), "on policy", 512, 1): 598,
    ("1.7B", (5, 2, 1), "drain", 512, 1): 346,
    ("1.7B", (8, 8, 8), "in turn", 128, 1): 157,
    ("1.7B", (8, 8, 8), "in turn", 512, 1): 338,
}


@pytest.mark.parametrize(("case", "seconds"), SIMULATED.items(), ids=lambda one: str(one))
def test_a_step_agrees_with_the_simulation_within_a_quarter(case, seconds):
    assert modelled(*case) == pytest.approx(seconds, rel=0.25)


def modelled(size: str, split: tuple[int, int, int], mode: str, rollouts: int, block: int) -> float:
    gpu = gpu_of("H100", 80)[0]
    teacher = model_costs(known()["Qwen/Qwen3-8B"])
    student = teacher if size == "8B" else model_costs(known()["Qwen/Qwen3-1.7B"])
    of_teacher = on_gpu(teacher, gpu, cache_gib=50.7)
    of_student = of_teacher if size == "8B" else on_gpu(student, gpu, cache_gib=62.8)
    sampler, refiner = PoolSetup(split[0], of_student), PoolSetup(split[1], of_teacher)
    placed, adapter = "separate", mode.startswith("shared")
    sent, way, turn_s = 2.0 * student.parameters, "nccl", 0.0
    if adapter:
        sent, way = 350e6, "adapter"
        placed, sampler = "shared", PoolSetup(split[0], of_student.slower(c.ADAPTER_SLOWER))
    elif mode == "in turn":
        placed, block = "timeshare", rollouts  # it refines when all is sampled
        turn_s = turn_seconds(gpu, 0.0 if size == "8B" else 2.0 * teacher.parameters, 0.0)
    if size == "8B" and placed != "separate":
        refiner = sampler
    how = HowItTrains(True, True, 1, 38_912, 80_000_000, split[2])
    setup = Setup(
        placed=placed, sampler=sampler, refiner=refiner, staleness=0 if "policy" in mode or mode == "in turn" else 1,
        drains=mode == "drain", block=block, samples=1, turn_s=turn_s, scheduling_s=c.SCHEDULING_S, verify_s=0.0,
        sync_s=sync_seconds(way, sent, True), rows_a_second=c.ROWS_A_SECOND,
        reads_again=mode == "keep",
    )  # fmt: skip
    lengths = assumed(16_384, 16_384, 22_528 if size == "8B" else 18_432, reference=size == "8B")
    costs = []
    for seed in range(3):
        rows = lengths.rows(rollouts, seed)
        work = learning.work([Trained(r.prompt, r.refine_prompt, r.refined) for r in rows], student, teacher, how)
        speed = learning.on_gpu_speed(gpu)
        train_s = learning.training_s(work, speed, split[2]) + learning.probe_flops(8850, 8, student) / speed.flops
        costs.append(step_cost(setup, rows, train_s, lengths.rows(rollouts, 100 + seed)))
    return mean_cost(costs).step_s
