"""What is proposed loads, fits, and is faster by the model; and the same GPUs without refinements."""

import shlex
from dataclasses import replace

import pytest

from priced import case, planner
from trd_ray import config
from trd_ray.economics import same_gpus, told
from trd_ray.economics.run_cost import run_cost

AS_IT_STOOD = [
    "rollouts_per_step=128", "steps=314", "stream={rows_per_block: 32}", "sampler.replicas=3", "refiner.replicas=1",
    "learner.workers=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def former():
    of = case("paper_opsd_8b", *AS_IT_STOOD)
    return of, same_gpus.faster(of, planner(of))


def test_every_proposal_can_be_typed_and_is_faster(former):
    of, found = former
    now = run_cost(of)
    assert len(found) >= 4 and [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
    for one in found:
        recipe = config.load("paper_opsd_8b", [*AS_IT_STOOD, *shlex.split(one.typed)])
        typed = case("paper_opsd_8b", *AS_IT_STOOD, *shlex.split(one.typed))
        assert recipe == config.load("paper_opsd_8b", [*AS_IT_STOOD, *one.overrides])
        assert sum(a.spec.replicas * a.spec.gpus for a in typed.placed.actors) == 8, one.typed
        cost = run_cost(typed)
        assert one.cost.step.step_s == pytest.approx(cost.step.step_s), "on the same lengths as what stands above it"
        each = cost.step.step_s / typed.recipe.rollouts_per_step
        assert one.gain == pytest.approx(1 - each / (now.step.step_s / 128)) and one.gain >= same_gpus.LEAST_GAIN


def test_what_made_the_former_recipe_slow_is_named(former):
    typed = " ".join(one.typed for one in former[1])
    for cure in ("stream.rows_per_block=1", "stream.max_staleness=1", "rollouts_per_step=512", "sampler.replicas="):
        assert cure in typed


def test_a_balanced_recipe_keeps_its_split():
    of = case("paper_opsd_8b", "sync.in_flight=drain")
    found = same_gpus.faster(of, planner(of))
    assert not any("learner.workers" in one.typed for one in found if "placement" not in one.typed)
    assert any("placement=shared" in one.typed for one in found)
    assert any("sync.in_flight=keep" in one.typed for one in found)


def test_one_pool_is_tried_where_rollouts_go_on_with_newer_weights_too():
    of = case("paper_opsd_8b", "sync.in_flight=keep")
    overrides = next(o for group in same_gpus._kinds(of) for o, _ in group if "placement=shared" in o)
    found = same_gpus.changed(of, overrides, planner(of))
    assert found is not None and found.recipe.sync.in_flight == "drain"


SHARES = [
    "placement=separate", "stream.max_staleness=1", "refiner.max_model_len=12288", "sampler.max_model_len=6144",
    *(f"{pool}.{key}=0.3" for pool in ("sampler", "refiner") for key in ("gpus", "memory_utilization")),
    "learner.gpus=0.38",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides", "on", "pools"),
    [
        ("paper_opsd_8b", [], "8xH100", {"sampler", "learner"}),  # rollouts go on with newer weights there
        ("paper_opd_1p7b", ["sync.backend=nccl"], "8xH100", {"sampler", "refiner", "learner"}),
        ("paper_opsd_8b_shared", [], "8xH100", {"sampler", "learner"}),
        ("qwen3_0p6b_24gb", SHARES, "1x24GiB", {"sampler", "learner"}),
    ],
)
def test_turns_on_the_same_gpus_are_a_recipe_that_loads_and_fits_them(name, overrides, on, pools):
    of = case(name, *overrides, on=on)
    kinds = [overrides for group in same_gpus._kinds(of) for overrides, _ in group]
    [proposed] = [overrides for overrides in kinds if "placement=timeshare" in overrides]
    found = same_gpus.changed(of, proposed, planner(of))
    assert found is not None and found.recipe.takes_turns
    gpus = round(sum(a.spec.replicas * a.spec.gpus for a in of.placed.actors))
    assert {(seat.machine, gpu) for seat in found.placed.seats for gpu in seat.gpus} == {(0, i) for i in range(gpus)}
    assert {seat.actor for seat in found.placed.seats} == pools
    assert not any("placement=timeshare" in o for group in same_gpus._kinds(found) for o, _ in group)


@pytest.mark.parametrize(
    ("name", "placement"), [("paper_opsd_8b_onpolicy", "shared"), ("paper_opd_1p7b_onpolicy", "separate")]
)
def test_who_takes_turns_is_told_what_gpus_of_their_own_would_bring(name, placement):
    of = case(name)
    apart = next(one for one in same_gpus.faster(of, planner(of)) if f"placement={placement}" in one.typed)
    recipe = config.load(name, list(apart.overrides))
    assert not recipe.takes_turns and recipe.stream.max_staleness == 1 and apart.cost.gpus == 8


def test_two_models_in_turn_refine_in_large_batches():
    of = case("paper_opd_1p7b_onpolicy", "stream.rows_per_block=null")
    found = next(one for one in same_gpus.faster(of, planner(of)) if one.overrides == ("stream.rows_per_block=64",))
    assert found.gain > 0.2
    now = run_cost(case("paper_opd_1p7b_onpolicy"))
    assert found.cost.step.step_s == pytest.approx(now.step.step_s), "as the recipe has it"


def test_plain_distillation_takes_turns_where_the_recipe_does():
    of = case("paper_opd_1p7b_onpolicy")
    found = same_gpus.plain_opd(of, planner(of))
    assert found is not None and set(found.cost.pools) == {"sampler", "learner"} and found.cost.gpus == 8


def test_an_engine_s_own_arguments_stay_as_they_are_beside_a_proposed_one():
    own = {"max_num_batched_tokens": 8192, "seed": None, "quantization": "a, b: c", "compilation_config": {"level": 3}}
    typed = same_gpus._with(own, "kv_cache_dtype", "fp8")
    tree = {"sampler": {}}
    config.apply_override(tree, f"sampler.extra={typed}")
    assert tree == {"sampler": {"extra": own | {"kv_cache_dtype": "fp8"}}} and "\n" not in typed
    assert same_gpus._with({}, "kv_cache_dtype", "fp8") == "{kv_cache_dtype: fp8}"


def test_splits_take_all_gpus_and_are_few():
    found = same_gpus.splits(case("paper_opsd_8b"), 8)
    assert 6 <= len(found) <= same_gpus.MOST_SPLITS
    for overrides in found:
        assert sum(int(one.partition("=")[2]) for one in overrides) == 8
    large = same_gpus.splits(case("paper_opsd_8b", "rollouts_per_step=4096"), 8)
    assert len(large) == 6


def test_a_tensor_parallel_engine_takes_its_gpus_in_a_split():
    of = case("paper_opsd_8b", "sampler.replicas=2", "sampler.tensor_parallel=2", "refiner.replicas=2")
    for overrides in same_gpus.splits(of, 7):
        counts = {key: int(n) for key, _, n in (one.partition("=") for one in overrides)}
        assert 2 * counts["sampler.replicas"] + counts["refiner.replicas"] + counts["learner.workers"] == 7


def test_plain_distillation_on_the_same_gpus_has_no_refiner_and_trains_longer():
    of = case("paper_opd_1p7b")
    found = same_gpus.plain_opd(of, planner(of))
    assert found is not None and "train.trajectory=y_o" in found.typed and "refiner" not in found.cost.pools
    assert found.cost.gpus == 8
    assert found.cost.training_h < run_cost(of).training_h, "the paper: 4:40 against 8:10"
    assert found.cost.step.train_s * found.cost.pools["learner"].engines > run_cost(of).step.train_s
    plain = replace(of, recipe=config.load("paper_opd_1p7b", ["train.trajectory=y_o", "teacher.view=vanilla"]))
    assert same_gpus.plain_opd(plain, planner(of)) is None


def test_a_proposal_that_is_no_recipe_is_none():
    of = case("paper_opd_1p7b")
    assert same_gpus.changed(of, ["placement=shared"], planner(of)) is None, "OPD has two models"
    assert same_gpus.changed(of, ["learner.workers=60"], planner(of)) is None, "there are no such GPUs"


def test_the_text_holds_what_a_reader_needs():
    of = case("paper_opsd_8b")
    changes, plain = same_gpus.faster(of, planner(of)), same_gpus.plain_opd(of, planner(of))
    estimate = told.CostEstimate(run_cost(of), changes, plain, 512, 40_245, price=2.5, plain_is_opsd=True)
    text = told.render(estimate)
    for part in (
        "8 H100, not measured", "-10 to +40%", "a step of 512 rollouts:", "sampling", "refining", "training", "sync",
        "at work", "tokens/s", "MFU 3", "idle: 5% of the GPUs' time", "79 steps: 10", "2 evaluations", "GPU-hours",
        "at 2.5 a GPU-hour", "an epoch of 40,245 rollouts", "plain OPSD on the same GPUs", "faster with the same GPUs",
    ):  # fmt: skip
        assert part in text, part
    tree = told.as_tree(estimate)
    assert tree["price"] == pytest.approx(tree["hours"] * 8 * 2.5) and tree["faster"][0]["overrides"]
    assert all(len(line) < 240 for line in text.splitlines())
