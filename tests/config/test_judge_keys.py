"""The judge in a recipe: a model with a pool of its own, and one sentence where it cannot be."""

import pytest
import yaml

from trd_ray import config
from trd_ray.config import JudgeConfig, VerifyConfig, keys
from trd_ray.config.effects import ANSWERS, ENGINES, MACHINES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.record.directory import MAY_CHANGE, differences

ASKED = {"verify": {"function": "judge"}, "judge": {"path": "wise", "replicas": {"min": 1, "max": 3}}}
SOURCES = [{"name": "a", "path": "a.jsonl", "verify": "judge"}, {"name": "b", "path": "b.jsonl"}]
BOTH = {"m": {"function": "math"}, "j": {"function": "judge", "weight": 0.5}}


def test_a_judge_has_a_pool_whose_weights_nobody_changes():
    recipe = config.from_tree(ASKED | {"teacher": {"follow": "live"}})
    assert list(recipe.engines) == ["sampler", "refiner", "judge"] and recipe.engines["judge"] is recipe.judge
    assert recipe.following.keys() == {"sampler", "refiner"}
    assert (config.role_of("judge"), config.teacher_of("judge"), config.keys_of("judge")) == ("judge", "", "judge")
    assert recipe.with_replicas("judge", 2).judge.replicas == 2 and recipe.judge.bounds.max == 3
    assert list(config.from_tree({}).engines) == ["sampler", "refiner"]


@pytest.mark.parametrize(
    "tree",
    [
        {"verify": {"functions": BOTH}},
        {"verify": {"functions": BOTH, "by": "kind"}},
        {"data": {"sources": SOURCES}},
        {"data": {"sources": [SOURCES[0] | {"verify": "j"}]}, "verify": {"functions": BOTH}},
    ],
    ids=["weights", "by", "source", "named-by-source"],
)
def test_wherever_a_verifier_is_the_judge_it_has_a_pool_and_needs_a_model(tree):
    assert "judge" in config.from_tree(tree | {"judge": {"path": "wise"}}).engines
    with pytest.raises(UserError, match="a verifier of the recipe is judge, but judge.path is empty: set judge.path"):
        config.from_tree(tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"judge": {"path": "wise"}},
            "judge has keys, but no verifier of the recipe is judge: set verify.function=judge",
        ),
        ({"judge": {"replicas": 2}, "verify": {"function": "math"}}, "no verifier of the recipe is judge"),
        (ASKED | {"judge": {"path": "wise", "replicaz": 2}}, "judge.replicaz .did you mean replicas"),
        (ASKED | {"judge": {"path": "wise", "temperature": 3}}, "judge.temperature"),
        (ASKED | {"judge": {"path": "wise", "tries": 0}}, "judge.tries"),
        ({"verify": {"function": "jugde"}}, "names no verifier: 'jugde' .did you mean judge"),
        (ASKED | {"verify": {"function": "judge", "arguments": {"a": 1}}}, "judge takes none: leave them out"),
    ],
)
def test_what_a_judge_cannot_be_is_one_sentence(tree, said):
    with pytest.raises(UserError, match=said):
        config.from_tree(tree)


def test_an_entry_that_is_called_judge_is_what_it_says_it_is():
    named = VerifyConfig.model_validate({"functions": {"judge": {"function": "math"}}, "by_source": {"a": "judge"}})
    assert not named.names_judge and not named.may_ask_judge("a")
    one_source = VerifyConfig(by_source={"a": "judge"})
    assert one_source.names_judge and one_source.may_ask_judge("a") and not one_source.may_ask_judge("b")
    assert not one_source.without_judge().names_judge and not one_source.built_in().names_judge
    both = VerifyConfig.model_validate({"functions": BOTH})
    assert list(both.without_judge().functions) == ["m"] and both.may_ask_judge(None)


def test_a_judge_leaves_the_wordings_to_the_verifier_beside_it():
    assert config.from_tree({"verify": {"functions": BOTH}, "judge": {"path": "w"}}).task == "math"
    assert config.from_tree(ASKED).task == "plain"


def test_a_judge_s_prompt_may_stand_in_a_file_beside_the_recipe(tmp_path):
    (tmp_path / "judge.md").write_text("{problem}\n{response}\nIs it polite?\n")
    tree = {"verify": {"function": "judge"}, "judge": {"path": "wise", "prompt": "@judge.md"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    recipe = config.load(str(tmp_path / "r.yaml"))
    assert recipe.judge.prompt == "{problem}\n{response}\nIs it polite?"
    (tmp_path / "judge.md").unlink()
    with pytest.raises(UserError, match="judge.prompt is @judge.md, but the file .* cannot be read"):
        config.load(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("written", [config.dump, config.dump_differences])
def test_a_recipe_with_a_judge_is_read_again_as_it_was(written):
    recipe = config.from_tree(ASKED)
    assert config.from_tree(yaml.safe_load(written(recipe))) == recipe


def test_a_judge_s_keys_change_verdicts_or_engines_and_no_answer():
    found = keys.effects()
    for key in ("path", "prompt", "temperature", "dtype", "max_model_len", "extra", "tries", "feedback"):
        assert VERDICTS in found[f"judge.{key}"] and ANSWERS not in found[f"judge.{key}"]
    assert {ENGINES, MACHINES} <= found["judge.replicas"] and VERDICTS not in found["judge.replicas"]
    assert VERDICTS not in found["sampler.dtype"] | found["student.path"] | found["teacher.path"]


@pytest.mark.parametrize(("override", "refused"), [("judge.replicas=4", 0), ("judge.prompt='{problem} {response}'", 1)])
def test_a_run_goes_on_with_more_engines_of_its_judge_and_with_no_other_judge(override, refused):
    tree = yaml.safe_load(config.dump(config.from_tree(ASKED)))
    began = config.from_tree(tree).model_dump(mode="json")
    config.apply_override(tree, override)
    found = differences(began, config.from_tree(tree).model_dump(mode="json"), MAY_CHANGE)
    assert len(found) == refused and all("judge.prompt" in one for one in found)


def test_a_verdict_takes_no_longer_than_a_start_and_all_tries():
    judge = JudgeConfig(path="w", start_timeout_s=100, request_timeout_s=10, tries=2)
    assert judge.verdict_s == 120
    assert [judge.response_tokens_in(context) for context in (100, 100_000)] == [50, 2048]
    assert JudgeConfig(path="w", max_response_tokens=7).response_tokens_in(100) == 7
