"""Several teachers in a recipe: each has the keys of the only one and its own refiner, and what cannot be is said."""

import pickle

import pytest
import yaml

from trd_ray import config
from trd_ray.config.keys import effects
from trd_ray.errors import UserError
from trd_ray.record.directory import MAY_CHANGE, differences

MATHS = {"mode": "opd", "path": "big", "refiner": {"replicas": 2, "max_model_len": 4096}}
TWO = {"teachers": {"maths": MATHS, "own": {"mode": "opsd", "follow": "live"}}, "data": {"teacher_column": "topic"}}


def made(**groups) -> config.Recipe:
    return config.from_tree(TWO | groups)


def test_each_teacher_has_a_recipe_in_which_it_is_the_only_one():
    recipe = made(refiner={"n": 4, "replicas": 3})
    maths, own = recipe.by_teacher["maths"], recipe.by_teacher["own"]
    assert (maths.teacher.path, maths.teacher.mode, own.teacher.follow) == ("big", "opd", "live")
    assert (maths.refiner.replicas, maths.refiner.max_model_len, own.refiner.replicas) == (2, 4096, 3)
    assert maths.refiner.n == own.refiner.n == 4  # what a teacher leaves out is as in refiner
    assert maths.teachers == {} and maths.teacher_path == "big" and own.teacher_path == recipe.student.path


def test_one_teacher_is_as_short_to_write_as_ever_and_its_pool_keeps_its_name():
    recipe = config.from_tree({"teacher": {"mode": "opd", "path": "big"}})
    assert recipe.by_teacher == {config.ONLY: recipe} and recipe.by_teacher[config.ONLY] is recipe
    assert list(recipe.engines) == ["sampler", "refiner"] and recipe.engines["refiner"] == recipe.refiner
    assert config.dump_differences(recipe) == "teacher:\n  path: big\n  mode: opd\n"


def test_pools_are_called_by_their_teachers():
    recipe = made()
    assert list(recipe.engines) == ["sampler", "refiner.maths", "refiner.own"]
    assert recipe.following == {"sampler": "student", "refiner.own": "student"}
    pool = "refiner.maths"
    assert (config.role_of(pool), config.teacher_of(pool)) == ("refiner", "maths")
    assert (config.keys_of(pool), config.keys_of("refiner")) == ("teachers.maths.refiner", "refiner")


def test_an_average_is_followed_by_the_pool_of_its_teacher_alone():
    recipe = config.from_tree({"teachers": {"mean": {"follow": "ema"}, "first": {}}})
    assert recipe.following == {"sampler": "student", "refiner.mean": "teacher"}


@pytest.mark.parametrize("written", [config.dump, config.dump_differences])
def test_what_is_written_down_is_read_again(written):
    recipe = made(refiner={"n": 4, "select": "first_passed"})
    named = recipe.teachers["maths"].with_refiner(n=1, select="first")  # the defaults, where refiner has others
    recipe = recipe.model_copy(update={"teachers": recipe.teachers | {"maths": named}})
    again = config.from_tree(yaml.safe_load(written(recipe)))
    assert again == recipe and again.engines["refiner.maths"] == recipe.engines["refiner.maths"]


def test_a_recipe_of_several_teachers_travels_to_other_processes():
    assert pickle.loads(pickle.dumps(made())) == made()


def test_a_pool_gets_other_replicas_by_its_name():
    recipe = made().with_replicas("refiner.maths", 5).with_replicas("sampler", 7)
    assert recipe.engines["refiner.maths"].replicas == 5 and recipe.sampler.replicas == 7
    assert recipe.engines["refiner.own"].replicas == recipe.refiner.replicas == 1
    assert config.from_tree({}).with_replicas("refiner", 2).refiner.replicas == 2


def test_overrides_reach_a_teacher():
    tree: dict = {}
    for override in ("teachers.maths.path=big", "teachers.maths.mode=opd", "teachers.maths.refiner.replicas=3"):
        config.apply_override(tree, override)
    assert config.from_tree(tree).engines["refiner.maths"].replicas == 3


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"teacher": {"follow": "live"}}, "teacher and teachers (maths, own) are both set"),
        ({"placement": "shared"}, "placement=shared has one pool.*set placement=separate"),
        ({"teachers": {"a": {"follow": "ema"}, "b": {"follow": "ema"}}}, "a and b follow averages.*keeps one"),
        ({"teachers": {"a b": {}}}, "teachers.a b is no name of a teacher.*letters, digits"),
        ({"teachers": {"a": {"mode": "opd"}}}, "teachers.a.mode is opd but teachers.a.path is empty"),
        (
            {"teachers": {"a": {"mode": "opd", "path": "x", "follow": "live"}}},
            "teachers.a.follow=live has no meaning in OPD",
        ),
        (
            {"teachers": {"a": {"follow": "ema"}}, "learner": {"lora": {}}, "sync": {"lora": "adapter"}},
            "teachers.a.follow=ema has the refiner follow an average",
        ),
        ({"teachers": {"a": {"refiner": {"replicaz": 3}}}}, "unknown key teachers.a.refiner.replicaz .did you mean"),
        ({"teachers": {"a": {"refiner": {"replicas": 0}}}}, "teachers.a.refiner.replicas must be at least 1"),
        ({"teachers": {"a": {"refiner": {"n": "many"}}}}, "teachers.a.refiner.n must be a whole number"),
        (
            {"teachers": {"a": {"refiner": {"select": "nearest"}}}},
            "teachers.a.refiner.select=nearest has a single refinement.* set teachers.a.refiner.n=4",
        ),
        ({"teachers": {"a": {"mode": "opx"}}}, "teachers.a.mode must be 'opsd' or 'opd'"),
        ({"teachers": {"a": 3}}, "teachers.a must be a group of keys"),
        ({"teachers": {}}, "data.teacher_column is 'topic', but the recipe has no teachers by name"),
    ],
)
def test_what_several_teachers_cannot_have_is_one_sentence(tree, said):
    with pytest.raises(UserError, match=said.replace("(", "\\(").replace(")", "\\)")):
        made(**tree)


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("teachers.maths.refiner.replicas=4", []),
        ("teachers.maths.refiner.gpus=0.5", []),
        ("teachers.maths.view=vanilla", ["teachers.maths.view"]),
        ("teachers.maths.refiner.n=2", ["teachers.maths.refiner.n"]),
    ],
)
def test_a_run_goes_on_with_other_pools_of_its_teachers_and_with_no_other_rows(override, refused):
    tree = yaml.safe_load(config.dump(made()))
    began = config.from_tree(tree).model_dump(mode="json")
    config.apply_override(tree, override)
    found = differences(began, config.from_tree(tree).model_dump(mode="json"), MAY_CHANGE)
    assert [one.split("=")[0] for one in found] == refused


def test_a_named_teacher_has_every_key_of_the_only_one_and_of_its_refiner():
    keys = effects()
    teachers = {key.removeprefix("teacher.") for key in keys if key.startswith("teacher.")}
    refiners = {key.removeprefix("refiner.") for key in keys if key.startswith("refiner.")}
    named = config.NamedTeacherConfig
    assert set(named.model_fields) == teachers | {"refiner"}
    assert set(named().refiner.model_dump()) == refiners
