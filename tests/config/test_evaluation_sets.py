"""Evaluation sets by name in a recipe: what a set leaves out, what it may be called, and what is best by it."""

import pytest

from trd_ray.config import dump, evaluated, from_tree, keys, load
from trd_ray.errors import UserError

SETS = {"old": {"path": "miniature:tune", "guard": True, "samples": 4}, "new": {"path": "aime24", "limit": 3}}


def recipe(sets=None, **evaluation):
    return from_tree({"evaluation": {"sets": SETS if sets is None else sets, **evaluation}})


def test_a_set_has_its_own_problems_and_everything_else_of_the_evaluation():
    e = recipe(samples=8, temperature=0.3, allow_overlap=True).evaluation
    old, new, main = e.of("old"), e.of("new"), e.of("")
    assert (old.path, old.samples, old.temperature, old.allow_overlap) == ("miniature:tune", 4, 0.3, True)
    assert (new.path, new.samples, new.limit, new.split) == ("aime24", 8, 3, "test")
    assert (main.path, main.samples, main.limit) == (e.path, 8, None)
    assert e.names == ["", "old", "new"] and old.names == [""]


def test_a_set_may_be_answered_greedily_beside_samples():
    greedy = {"greedy": {"path": "miniature:test", "samples": 1, "temperature": 0}}
    e = recipe(greedy, temperature=0.7).evaluation
    assert (e.of("greedy").temperature, e.of("greedy").samples, e.of("").temperature) == (0, 1, 0.7)


def test_sets_alone_are_an_evaluation_too():
    e = recipe(path=None).evaluation
    assert e.names == ["old", "new"] and e.in_training
    assert not recipe({}, path=None).evaluation.in_training


def test_a_recipe_with_sets_is_stored_and_read_again(tmp_path):
    asked = recipe()
    (tmp_path / "r.yaml").write_text(dump(asked))
    assert load(str(tmp_path / "r.yaml")) == asked
    (tmp_path / "mine.yaml").write_text("evaluation: {sets: {old: {path: a.jsonl, guard: true}}}\n")
    given = load(str(tmp_path / "mine.yaml"), ["evaluation.sets.old.samples=2"])
    assert (given.evaluation.sets["old"].samples, given.evaluation.sets["old"].guard) == (2, True)


def test_sets_are_one_key_that_says_which_problems_are_scored():
    assert "evaluation.sets" in keys.effects()
    assert not any(key.startswith("evaluation.sets.") for key in keys.effects())


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"a/b": {"path": "x"}}, "names a folder"),
        ({"avg": {"path": "x"}}, "metric's name"),
        ({"old": {}}, "evaluation.sets.old.path is missing"),
        ({"old": {"path": "x", "gard": True}}, "guard"),
        ({"old": {"path": "x", "samples": 0}}, "evaluation.sets.old.samples must be at least 1"),
        ({"old": "x"}, "a group of keys"),
    ],
)
def test_a_set_that_cannot_be_is_refused(sets, words):
    with pytest.raises(UserError, match=words):
        recipe(sets)


def test_a_checkpoint_may_be_best_by_a_set():
    assert evaluated("") == ("evaluation/avg", "evaluation/pass")
    assert evaluated("old") == ("evaluation/old/avg", "evaluation/old/pass")
    for best in ("evaluation/old/avg", "evaluation/new/pass", "evaluation/avg"):
        from_tree({"evaluation": {"sets": SETS}, "checkpoint": {"best": best}})
    with pytest.raises(UserError, match="did you mean evaluation/old/avg"):
        from_tree({"evaluation": {"sets": SETS}, "checkpoint": {"best": "evaluation/odl/avg"}})
    with pytest.raises(UserError, match="no evaluation falls on a checkpoint"):
        from_tree({"evaluation": {"sets": SETS, "after": False}, "checkpoint": {"best": "evaluation/old/avg"}})
