"""Code that a recipe names is found, loaded once and refused with a sentence; a file's neighbours can be imported."""

import sys

import pytest

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.own_code import OUT_OF_FILES, load, made, placed


@pytest.fixture
def score(tmp_path, monkeypatch):
    """A file of the user's, which imports another one beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_it.py").write_text("HALF = 0.5\n")
    file = tmp_path / "score.py"
    file.write_text(
        "import beside_it\nfrom dataclasses import dataclass\n\n@dataclass\nclass Watch:\n    seen: int = 0\n\n"
        "def passes(text, problem):\n    return beside_it.HALF\n"
    )
    yield file
    for name in [one for one in sys.modules if one.startswith(OUT_OF_FILES) or one == "beside_it"]:
        del sys.modules[name]


def test_a_function_of_a_file_and_one_of_a_module_are_loaded(score):
    assert load(f"{score}:passes")("", {}) == 0.5
    assert load("score.py:passes", score.parent)("", {}) == 0.5
    assert load("math:sqrt")(9) == 3
    assert load("collections:OrderedDict.fromkeys")("a") == {"a": None}


def test_two_names_of_one_file_are_of_one_module(score):
    assert load(f"{score}:Watch").__module__ == load(f"{score}:passes").__module__


def test_a_class_is_made_and_an_instance_stays(score):
    watch = made("it", load(f"{score}:Watch"))
    assert watch.seen == 0 and made("it", watch) is watch
    with pytest.raises(UserError, match=r"cannot be made without arguments \(TypeError: .*\): fix it"):
        made("it", type("Wants", (), {"__init__": lambda self, x: None}))


def test_nothing_of_the_user_s_takes_the_place_of_a_package(score):
    load(f"{score}:passes")
    assert sys.path[-1] == str(score.parent)


@pytest.mark.parametrize(
    "reference, said",
    [
        ("score", "names no code: write it as file.py:NAME"),
        ("score.py:", "names no code"),
        ("score.py:a b", "names no code"),
        ("a/b:c", "names no code"),
        ("no.py:passes", "there is no file .*no.py"),
        ("score.py:pases", r"score.py has no pases \(did you mean passes\?\)"),
        ("no_such_module_here:f", "there is no module no_such_module_here: install it"),
        ("os.no_such:f", "there is no module os.no_such"),
        ("broken.py:f", r"broken.py cannot be imported \(ZeroDivisionError: division by zero, line 2\): fix it"),
        ("leaves.py:f", r"leaves.py cannot be imported \(SystemExit: 3, line 1\)"),
        ("unparsed.py:f", r"unparsed.py cannot be imported \(SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(score, reference, said):
    (score.parent / "broken.py").write_text("x = 0\n1 / x\n")
    (score.parent / "leaves.py").write_text("raise SystemExit(3)\n")
    (score.parent / "unparsed.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=said) as e:
        load(reference, score.parent)
    assert "\n" not in str(e.value)


def test_a_recipe_s_code_lies_beside_the_recipe_and_an_override_s_here(score, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("metrics: {function: score.py:passes}\ncallbacks: [score.py:Watch, math:sqrt]\n")
    found = config.load(str(recipe))
    assert found.metrics.function == f"{score}:passes" and found.callbacks == [f"{score}:Watch", "math:sqrt"]
    given = config.load(str(recipe), ["metrics.function=score.py:passes"])
    assert given.metrics.function == "score.py:passes" == placed("score.py:passes", tmp_path / "elsewhere")


def test_a_key_that_cannot_name_code_is_refused_by_name():
    with pytest.raises(UserError, match="callbacks 'Watch' names no code"):
        config.from_tree({"callbacks": ["Watch"]})
