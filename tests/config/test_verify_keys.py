"""Which verifier a recipe names, where a function's file is found, and what older recipes say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trd_ray import config
from trd_ray.config import VerifyConfig, keys
from trd_ray.errors import UserError
from trd_ray.record.directory import MAY_CHANGE, differences

SCORE = "def score(text, problem):\n    return 1.0\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a recipe and its function; the working directory is another one."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine" / "score.py").write_text(SCORE)
    (tmp_path / "mine" / "mine.yaml").write_text("verify: {function: 'score.py:score'}\n")
    return tmp_path / "mine"


def refusal(tree: dict[str, Any], beside: Path | None = None) -> str:
    with pytest.raises(UserError) as refused:
        config.from_tree(tree, beside)
    return str(refused.value)


def test_a_function_is_found_beside_its_recipe_else_where_trd_is_called(folder):
    assert config.load(str(folder / "mine.yaml")).verify.sources == {"score.py": SCORE}
    (folder.parent / "elsewhere" / "other.py").write_text("# mine\n")
    asked = ["verify.function=other.py:score"]
    assert config.load(str(folder / "mine.yaml"), asked).verify.sources == {"other.py": "# mine\n"}
    absolute = f"verify.function={folder / 'score.py'}:score"
    assert config.load("miniature_opsd", [absolute]).verify.sources == {str(folder / "score.py"): SCORE}


def test_a_stored_recipe_has_the_function_that_the_run_began_with(folder, tmp_path):
    began = config.load(str(folder / "mine.yaml"))
    (tmp_path / "recipe.yaml").write_text(config.dump(began))
    (folder / "score.py").write_text(SCORE.replace("1.0", "0.5"))
    assert config.stored(tmp_path / "recipe.yaml") == began == config.load(str(tmp_path / "recipe.yaml"))
    now = config.load(str(folder / "mine.yaml"))
    [found] = differences(began.model_dump(mode="json"), now.model_dump(mode="json"), MAY_CHANGE)
    assert found.startswith("verify.sources.score.py=")
    long = differences({"a": "x" * 1000}, {"a": "y" * 1000}, set())[0]
    assert len(long) < 200 and long.count("sha256") == 2


def test_the_keys_that_a_dry_run_prints_hold_no_source(folder):
    assert yaml.safe_load(config.dump_differences(config.load(str(folder / "mine.yaml")))) == {
        "verify": {"function": "score.py:score"}
    }


def test_a_parameter_has_the_name_that_the_data_gives_a_column(folder):
    asked = ["data.columns={answer: gold, problem: question}", "verify.columns={level: difficulty}"]
    found = config.load(str(folder / "mine.yaml"), asked).verify.columns
    assert found == {"gold": "answer", "question": "problem", "level": "difficulty"}


@pytest.mark.parametrize(
    ("verify", "said"),
    [
        ({"function": "no.py:score"}, "verify.function: there is no file no.py in "),
        ({"function": "broken.py:score"}, "line 2 of "),
        (
            {"function": "mth"},
            "verify.function names no verifier: 'mth' (did you mean math?); a function of your own is",
        ),
        ({"function": "score.py:"}, "verify.function must name a function as file.py:name or package.module:name"),
        ({"function": "a-b:score"}, "verify.function must name a function as file.py:name or package.module:name"),
        ({"function": "math", "arguments": {"a": 1}}, "the built-in verifier math takes none: leave them out"),
        ({"arguments": {"a": 1}}, "the built-in verifier math or code takes none: leave them out"),
        ({"function": "math", "functions": {"a": {"function": "math"}}}, "names both function and functions"),
        ({"by": "source"}, "by chooses among functions, and there are none: set verify.functions"),
        ({"functions": {"a": {"function": "math", "weight": 0}}}, "all have weight 0, so there is no score"),
        ({"functions": {"a": {"function": "math", "wight": 1}}}, "unknown key verify.functions.a.wight (did you mean"),
        ({"functions": {"a": {"weight": "much", "function": "math"}}}, "verify.functions.a.weight must be a number"),
        ({"functions": {"a": "math"}}, "verify.functions.a must be a group of keys, but found 'math'"),
        ({"functions": {"a": {}}}, "verify.functions.a.function is missing"),
        ({"deadline_s": 0}, "verify.deadline_s must be greater than 0"),
    ],
)
def test_what_names_no_verifier_is_refused_in_one_sentence(verify, said, folder):
    (folder / "broken.py").write_text("x = 1\ndef score(:\n")
    assert said in refusal({"verify": verify}, folder)


@pytest.mark.parametrize(
    ("verify", "prompts", "task"),
    [
        ({}, {}, "math"),
        ({"function": "math"}, {}, "math"),
        ({"function": "code"}, {}, "code"),
        ({"function": "package.module:score"}, {}, "plain"),
        ({"function": "package.module:score"}, {"task": "math"}, "math"),
        ({"functions": {"a": {"function": "math"}, "b": {"function": "package.module:form"}}}, {}, "plain"),
        # Older recipes.
        ({"task": "code"}, {}, "code"),
        ({"task": "code"}, {"task": None, "system": None}, "code"),
        ({"task": "math"}, {}, "math"),
        ({"task": "code"}, {"task": "plain"}, "plain"),
    ],
)
def test_the_default_wordings_follow_the_verifier_and_older_recipes_are_read(verify, prompts, task):
    assert config.from_tree({"verify": verify, "prompts": prompts}).task == task


def test_a_run_that_an_older_version_began_goes_on():
    """Its recipe.yaml has verify.task with every other key, and its recipe may still say it, or not any more."""
    for said, now in (("math", {}), ("code", {"prompts": {"task": "code"}}), ("code", {"verify": {"task": "code"}})):
        tree = config.from_tree({}).model_dump(mode="json")
        tree["verify"]["task"] = said
        del tree["prompts"]["task"]
        found = config.from_tree(now).model_dump(mode="json")
        assert differences(config.from_tree(tree).model_dump(mode="json"), found, MAY_CHANGE) == []


def test_functions_are_one_key_whatever_is_in_them():
    assert "verify.functions" in keys.effects() and not any(k.startswith("verify.functions.") for k in keys.effects())


def test_programs_run_only_where_the_code_verifier_may_be_asked():
    assert VerifyConfig().may_run_code and VerifyConfig(function="code").may_run_code
    assert not VerifyConfig(function="math").may_run_code and not VerifyConfig(function="a.b:c").may_run_code
