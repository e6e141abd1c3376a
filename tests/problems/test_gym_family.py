"""One range of indices is cut into splits, and what cannot be cut is refused. Needs no library."""

import pytest

from trd_ray.config import DataConfig, EvaluationConfig, from_tree
from trd_ray.errors import UserError
from trd_ray.preflight.held_out import same_family
from trd_ray.problems.gym.family import cut, names_family, require_apart
from trd_ray.problems.load import load_problems

PATH = "reasoning_gym:spell_backward"


def test_the_test_split_begins_where_the_training_split_ends():
    arguments = {"size": 300, "test": 50, "seed": 7, "min_word_len": 4}
    train, test = (cut(PATH, split, arguments, "data") for split in ("train", "test"))
    assert (train.items, test.items) == (range(300), range(300, 350))
    assert (train.others, test.others) == (test.items, train.items)
    assert train.config == test.config == {"seed": 7, "size": 350, "min_word_len": 4}
    assert not train.shares(test) and train.shares(train)


@pytest.mark.parametrize(
    ("seed", "size", "shares"),
    [(0, 100, True), (50, 100, True), (99, 100, True), (100, 100, False), (1_000_000, 100, False)],
)
def test_close_seeds_share_items(seed, size, shares):
    trained = cut(PATH, "train", {"size": size}, "data")
    held_out = cut(PATH, "train", {"size": size, "seed": seed}, "evaluation")
    assert trained.shares(held_out) == held_out.shares(trained) == shares
    if shares:
        with pytest.raises(UserError, match="seed further away"):
            require_apart(trained, held_out, "evaluation")
    else:
        require_apart(trained, held_out, "evaluation")


def test_other_arguments_or_another_family_share_nothing():
    trained = cut(PATH, "train", {}, "data")
    assert not trained.shares(cut(PATH, "train", {"min_word_len": 9}, "evaluation"))
    assert not trained.shares(cut("reasoning_gym:gcd", "train", {}, "evaluation"))


@pytest.mark.parametrize(
    ("split", "arguments", "words"),
    [
        ("validation", {}, "train and test"),
        ("train", {"size": 0}, "data.arguments.size is 0"),
        ("train", {"size": "many"}, "whole number"),
        ("train", {"size": True}, "whole number"),
        ("train", {"test": 1.5}, "data.arguments.test"),
        ("train", {"seed": -1}, "data.arguments.seed"),
        ("train", {"size": 10**6}, "are the most"),
    ],
)
def test_what_cannot_be_cut_is_refused(split, arguments, words):
    with pytest.raises(UserError, match=words):
        cut(PATH, split, arguments, "data")


def same(recipe):
    return same_family(recipe, recipe.evaluation)


def test_an_evaluation_of_the_same_family_takes_the_arguments_of_the_training_data():
    def recipe(**evaluation):
        return from_tree(
            {"data": {"path": PATH, "arguments": {"size": 40, "seed": 3}}, "evaluation": {"path": PATH, **evaluation}}
        )

    assert same(recipe()) == {"size": 40, "seed": 3}
    assert same(from_tree({"data": {"path": PATH}})) == {}
    with pytest.raises(UserError, match="both trained on and held out"):
        same(recipe(split="train"))
    with pytest.raises(UserError, match="both trained on and held out"):
        same(recipe(arguments={"size": 4, "seed": 3}))
    assert same(recipe(split="train", allow_overlap=True))


def test_arguments_are_for_families_alone(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    for spec in (DataConfig, EvaluationConfig):
        with pytest.raises(UserError, match="arguments are for reasoning_gym:FAMILY"):
            load_problems(spec(path=str(tmp_path / "p.jsonl"), arguments={"size": 3}))


def test_only_the_prefix_names_a_family():
    assert names_family(PATH) and not names_family("miniature:train") and not names_family(None)
