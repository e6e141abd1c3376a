"""The facts that ship are those of the models' own files, and cover every model that a recipe names."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen3Config

import trd_ray
from trd_ray import config, models
from trd_ray.known_models import facts_without_files, known

RECIPES = sorted(p.stem for p in (Path(trd_ray.__file__).parent / "recipes").glob("*.yaml"))
HERE = ["smollm2", *(f"miniature:{name}" for name in ("student", "teacher", "code_student", "code_teacher"))]
# Parameters as counted from the published weights (their safetensors index, tied matrices once).
COUNTED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_model_that_a_recipe_names_is_known(name):
    recipe = config.load(name)
    assert {recipe.student.path, recipe.teacher_path} <= known().keys()


@pytest.mark.parametrize("name", HERE)
def test_the_facts_of_a_model_that_is_here_are_those_of_its_files(name):
    assert facts_without_files(name) == replace(models.facts(models.resolve(name)), path=name)


@pytest.mark.parametrize("name", COUNTED)
def test_the_facts_of_a_published_model_are_those_of_its_config(name):
    f = known()[name]
    assert f.parameters == COUNTED[name]
    own = Qwen3Config(
        vocab_size=f.vocab_size, hidden_size=f.hidden_size, intermediate_size=f.intermediate_size,
        num_hidden_layers=f.layers, num_attention_heads=f.attention_heads, num_key_value_heads=f.kv_heads,
        head_dim=f.head_dim, max_position_embeddings=f.max_positions, tie_word_embeddings=f.tied_embeddings,
        dtype=f.dtype,
    )  # fmt: skip
    assert models.facts_of(own, name, list(f.eos_ids)) == f


def test_a_folder_s_own_files_are_read(tmp_path):
    with pytest.raises(models.UserError, match="there is no such model"):
        facts_without_files(str(tmp_path / "none"))
