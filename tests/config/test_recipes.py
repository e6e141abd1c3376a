"""Every shipped recipe loads, says what its set-up needs, and fits the machine it names."""

import re
from pathlib import Path

import pytest
from transformers import Qwen3Config

import trd_ray
from trd_ray import config, models, shipped
from trd_ray.known_models import facts_of_recipe
from trd_ray.preflight import in_turn, placement
from trd_ray.session.dry import placed_elsewhere
from trd_ray.session.estimated import Asked, estimate

SHIPPED = sorted(p.stem for p in (Path(trd_ray.__file__).parent / "recipes").glob("*.yaml"))
SHARED = [name for name in SHIPPED if name.endswith("_shared")]
IN_TURN = [name for name in SHIPPED if name.endswith("_onpolicy")]
PAPER = [name for name in SHIPPED if name.startswith("paper_") and name not in (*SHARED, *IN_TURN)]
NODE = {"CPU": 128.0, "GPU": 8.0, "memory": 512 * 2**30}
# The GiB that a card of so many GB has at least: an L4 or A10G, an H100.
CARDS = {"24gb": 22.0, "80gb": 79.0}
ONE_CARD = [name for name in SHIPPED if name.endswith(tuple(CARDS))]


def shipped_as(name: str) -> shipped.Shipped:
    [found] = [s for s in shipped.recipes() if s.name == name]
    return found


def qwen3(hidden: int, intermediate: int, layers: int, heads: int, positions: int, tied: bool) -> models.ModelFacts:
    """Facts of a published config.json."""
    return models.facts_of(
        Qwen3Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=positions,
            tie_word_embeddings=tied,
        ),
        f"Qwen3 of width {hidden}",
    )


MODELS = {
    "Qwen/Qwen3-0.6B": qwen3(1024, 3072, 28, 16, 40960, True),
    "Qwen/Qwen3-1.7B": qwen3(2048, 6144, 28, 16, 40960, True),
    "Qwen/Qwen3-4B-Instruct-2507": qwen3(2560, 9728, 36, 32, 262144, True),
    "Qwen/Qwen3-8B": qwen3(4096, 12288, 36, 32, 40960, False),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_by_its_name_and_reads_back(name, tmp_path):
    recipe = config.load(name)
    assert recipe.name == name.replace("_", "-"), "two recipes would share a run directory"
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump(recipe))
    assert config.load(str(copy)) == recipe


def test_the_set_ups_of_the_paper_are_shipped():
    tasks = {name: config.load(name).task for name in PAPER}
    maths = dict.fromkeys(("paper_opd_1p7b", "paper_opd_4b", "paper_opsd_4b", "paper_opsd_8b"), "math")
    assert tasks == maths | dict.fromkeys(("paper_opd_code_1p7b", "paper_opd_code_4b"), "code")


def placed(name: str, cluster: dict[str, float], gpu_gib: float | None = None) -> placement.Placement:
    recipe = config.load(name)
    longest = recipe.refiner.max_prompt_tokens + recipe.refiner.max_response_tokens
    student, teacher = MODELS[recipe.student.path], MODELS[recipe.teacher_path]
    return placement.plan(recipe, student, teacher, cluster, gpu_gib=gpu_gib, longest_sequence_tokens=longest)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_fits_one_node_of_eight_80_gib_gpus(name):
    plan = placed(name, NODE)
    assert plan.fits, plan.reasons
    assert plan.needs["GPU"] == 8
    assert plan.sync_backend == "nccl"
    assert f"{plan.needs['CPU']:g} CPUs for its actors" in shipped.text(name)


@pytest.mark.parametrize("name", SHARED)
def test_a_recipe_with_shared_engines_is_the_other_but_for_who_refines(name):
    other = name.removesuffix("_shared")
    shared, separate = (config.load(n).model_dump() for n in (name, other))
    assert (shared["placement"], separate["placement"]) == ("shared", "separate")
    assert shared["sampler"]["replicas"] == separate["sampler"]["replicas"] + separate["refiner"]["replicas"]
    assert shared["sampler"]["max_model_len"] >= separate["refiner"]["max_model_len"]
    assert shared["sampler"]["extra"] == separate["refiner"]["extra"]
    for key in ("temperature", "top_p", "top_k", "n", "max_prompt_tokens", "max_response_tokens", "select", "feedback"):
        assert shared["refiner"][key] == separate["refiner"][key], key
    engines = ("placement", "name", "sampler", "refiner", "sync")
    assert {k: v for k, v in shared.items() if k not in engines} == {
        k: v for k, v in separate.items() if k not in engines
    }
    plan = placed(name, NODE)
    assert plan.fits and plan.needs["GPU"] == 8, plan.reasons
    assert plan.sync_backend == "adapter"
    assert f"{plan.needs['CPU']:g} CPUs for its actors" in shipped.text(name)


@pytest.mark.parametrize("name", IN_TURN)
def test_a_recipe_in_turns_is_the_other_but_for_who_has_the_gpus(name):
    turns, separate = config.load(name), config.load(name.removesuffix("_onpolicy"))
    assert turns.takes_turns and turns.stream.max_staleness == 0
    assert turns.sampler.replicas == turns.learner.workers == 8
    for key in ("temperature", "top_p", "top_k", "n", "max_prompt_tokens", "max_response_tokens", "select", "feedback"):
        assert getattr(turns.refiner, key) == getattr(separate.refiner, key), key
    placed_so = {"placement", "name", "sampler", "refiner", "sync", "stream", "learner"}
    assert turns.model_dump(exclude=placed_so) == separate.model_dump(exclude=placed_so)
    assert turns.learner == separate.learner.model_copy(update={"workers": 8})
    plan = placed(name, NODE)
    assert plan.fits and plan.needs["GPU"] == pytest.approx(8, abs=0.01), plan.reasons
    assert plan.sync_backend == ("adapter" if turns.shares_engines else "ipc")
    pools = {"sampler", "learner"} | ({"refiner"} if turns.teacher.mode == "opd" else set())
    for gpu in range(8):
        assert {seat.actor for seat in plan.seats if gpu in seat.gpus} == pools
    assert f"{plan.needs['CPU']:g} CPUs for its actors" in shipped.text(name)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_splits_the_gpus_where_its_stages_take_as_long(name):
    """As simulated: five that sample, two that refine and one that trains, while the next step is sampled."""
    r = config.load(name)
    assert (r.sampler.replicas, r.refiner.replicas, r.learner.workers) == (5, 2, 1)
    assert r.stream.max_staleness == 1
    assert r.refiner.extra == {"max_num_batched_tokens": 8192}


@pytest.mark.parametrize("name", ONE_CARD)
def test_a_recipe_for_one_card_fits_the_smallest_that_is_sold_as_that(name):
    recipe = config.load(name)
    size = name.rpartition("_")[2]
    assert shipped_as(name).machine == f"1 GPU of {size.removesuffix('gb')} GB"
    plan = placed(name, {"CPU": 4.0, "GPU": 1.0, "memory": 48 * 2**30}, CARDS[size])
    assert plan.fits, plan.reasons
    assert plan.needs["GPU"] == pytest.approx(1.0, abs=0.03)
    assert plan.sync_backend == "adapter"
    assert recipe.learner.lora and recipe.teacher.mode == "opsd"
    assert recipe.takes_turns and recipe.shares_engines, "no second copy of the frozen teacher"
    for phase in in_turn.phases(plan.actors):
        assert phase.total_gib <= CARDS[size], phase


def test_there_is_a_recipe_for_each_size_of_card_and_two_models_of_it():
    paths = {size: {config.load(n).student.path for n in ONE_CARD if n.endswith(size)} for size in CARDS}
    assert paths == {
        "24gb": {"Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"},
        "80gb": {"Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-8B"},
    }


def test_the_recipe_for_two_nodes_is_the_paper_s_with_twice_the_actors():
    two, one = (config.load(name).model_dump() for name in ("qwen3_8b_two_nodes", "paper_opsd_8b"))
    for pool, key in (("sampler", "replicas"), ("refiner", "replicas"), ("learner", "workers")):
        assert two[pool].pop(key) == 2 * one[pool].pop(key)
    assert two | {"name": ""} == one | {"name": ""}
    plan = placed("qwen3_8b_two_nodes", {name: 2 * size for name, size in NODE.items()})
    assert plan.fits and plan.needs["GPU"] == 16, plan.reasons
    assert f"{plan.needs['CPU']:g} CPUs for its actors" in shipped.text("qwen3_8b_two_nodes")
    assert not placed("qwen3_8b_two_nodes", NODE).fits


@pytest.mark.parametrize("name", [name for name in SHIPPED if "without" not in shipped_as(name).machine])
def test_a_recipe_for_gpus_says_what_it_needs_and_where_its_estimate_comes_from(name):
    header = " ".join(re.match(r"(#.*\n)+", shipped.text(name))[0].replace("#", "").split())
    assert "Needs " in header
    estimated = re.search(r"Estimate: (\d+\.\d) h for .* on (\d+) H100, (\d+\.\d) with evaluations and start", header)
    assert bool(estimated) != name.endswith(tuple(CARDS)), "one card's hours hang on its answers alone"
    if not estimated:
        assert "--like a short run of this recipe" in header
        return
    assert "From a model" in header and "-10 to +40%" in header
    nodes = int(estimated[2]) // 8
    recipe = config.load(name)
    resolved, plan = placed_elsewhere(recipe, "train", f"{nodes}x8xH100")
    cost = estimate(resolved, *facts_of_recipe(recipe), plan, "train", Asked(), changes=False).cost
    assert (f"{cost.training_h:.1f}", f"{cost.hours:.1f}") == (estimated[1], estimated[3]), "as --dry-run has it"


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_has_the_paper_s_settings(name):
    r = config.load(name)
    for sampling in (r.sampler, r.refiner):
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (0.6, 0.95, 20, 1)
        assert sampling.max_response_tokens == 16384
    assert r.refiner.max_prompt_tokens == (18432 if r.teacher.mode == "opd" else 22528)
    assert r.refiner.max_model_len == r.learner.tokens_per_micro_batch == (34816 if r.teacher.mode == "opd" else 38912)
    assert (r.rollouts_per_step, r.steps) == (512, {"math": 79, "code": None}[r.task])  # one epoch
    longest = {"math": 38912, "code": 16384}[r.task]
    assert (r.evaluation.samples, r.evaluation.max_response_tokens) == (16, longest)
    assert r.refiner.feedback == "none"
    opt = r.learner
    assert 2e-6 <= opt.lr <= 5e-6
    assert (opt.betas, opt.weight_decay, opt.grad_clip) == ((0.9, 0.95), 0.005, 1.0)
    assert (opt.warmup_ratio, opt.min_lr_ratio, r.loss.temperature) == (0.1, 0.1, 1.0)
    assert opt.lora and (opt.lora.rank, opt.lora.alpha, opt.lora.targets) == (64, 128, None)
    assert r.teacher.follow == "frozen" and r.teacher.view == "refine"
    assert (r.train.trajectory, r.train.subset, r.train.when_refinement_fails) == ("y_r", "all", "train")


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_states_the_thinking_mode_of_every_model_that_has_one(name):
    r = config.load(name)
    thinks = r.student.path != "Qwen/Qwen3-4B-Instruct-2507"
    assert ("enable_thinking" in r.student.chat_template_kwargs) == thinks
    assert ("enable_thinking" in r.evaluation.chat_template_kwargs) == thinks
    assert ("enable_thinking" in r.teacher.chat_template_kwargs) == (r.teacher_path == "Qwen/Qwen3-8B")


def test_the_smoke_recipe_fits_two_cores_without_a_gpu():
    recipe = config.load("smollm2_smoke")
    smol = models.facts(models.resolve("smollm2"))
    plan = placement.plan(recipe, smol, smol, {"CPU": 2.0, "memory": 16 * 2**30})
    assert plan.fits, plan.reasons
