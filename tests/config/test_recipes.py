"""Every shipped recipe loads, says what its set-up needs, and fits the machine it names."""

from pathlib import Path

import pytest
from transformers import Qwen3Config

import trd_ray
from trd_ray import config, models
from trd_ray.preflight import placement

SHIPPED = sorted(p.stem for p in (Path(trd_ray.__file__).parent / "recipes").glob("*.yaml"))
PAPER = [name for name in SHIPPED if name.startswith("paper_")]
NODE = {"CPU": 128.0, "GPU": 8.0, "memory": 512 * 2**30}


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
    tasks = {name: config.load(name).verify.task for name in PAPER}
    maths = dict.fromkeys(("paper_opd_1p7b", "paper_opd_4b", "paper_opsd_4b", "paper_opsd_8b"), "math")
    assert tasks == maths | dict.fromkeys(("paper_opd_code_1p7b", "paper_opd_code_4b"), "code")


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_fits_one_node_of_eight_80_gib_gpus(name):
    recipe = config.load(name)
    longest = recipe.refiner.max_prompt_tokens + recipe.refiner.max_response_tokens
    plan = placement.plan(
        recipe, MODELS[recipe.student.path], MODELS[recipe.teacher_path], NODE, longest_sequence_tokens=longest
    )
    assert plan.fits, plan.reasons
    assert plan.needs["GPU"] == 8
    assert plan.sync_backend == "nccl"


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_has_the_paper_s_settings(name):
    r = config.load(name)
    for sampling in (r.sampler, r.refiner):
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (0.6, 0.95, 20, 1)
        assert sampling.max_response_tokens == 16384
    assert r.refiner.max_prompt_tokens == (18432 if r.teacher.mode == "opd" else 22528)
    assert r.refiner.max_model_len == r.learner.tokens_per_micro_batch == (34816 if r.teacher.mode == "opd" else 38912)
    assert (r.rollouts_per_step, r.steps) == (128, None)  # one epoch
    longest = {"math": 38912, "code": 16384}[r.verify.task]
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
