"""A guard is lost where its score is below the base, clear of chance; such a checkpoint is not the best."""

import json

import pytest

from trd_ray.config import from_tree
from trd_ray.record.best import kept_checkpoints, value_of
from trd_ray.record.directory import RunDirectory
from trd_ray.record.guards import is_lost, of_guards, section
from trd_ray.record.summary import write_summary
from trd_ray.score.stats import Answer, Score, compare, score
from trd_ray.session.evaluating import told

PROBLEMS = 40
RECIPE = from_tree(
    {
        "name": "guarded",
        "evaluation": {"sets": {"old": {"path": "miniature:tune", "guard": True}, "new": {"path": "miniature:test"}}},
    }
)


def scored(name: str, solved: int, step: int = 8) -> Score:
    """The first `solved` of PROBLEMS problems pass in both of their samples."""
    answers = [
        Answer(f"p{i:02d}", passed=i < solved, tokens=5, truncated=False, answered=True)
        for i in range(PROBLEMS)
        for _ in range(2)
    ]
    return score(answers, name=name, step=step, version=step, resamples=500, seed=0)


def after(solved: int, before: int = 30) -> Score:
    return compare(scored("trained", solved), scored("base", before, 0), resamples=500, seed=0)


@pytest.mark.parametrize(
    ("before", "solved", "lost"), [(30, 15, True), (30, 29, False), (30, 30, False), (15, 30, False), (30, 0, True)]
)
def test_a_guard_is_lost_only_where_the_interval_is_clear_of_zero_and_below(before, solved, lost):
    assert is_lost(after(solved, before)) == lost


def test_a_lost_guard_is_told_with_how_far_it_moved_and_a_set_that_is_none_is_not():
    scores = {"old": [scored("base", 30, 0), after(15)], "new": [scored("base", 30, 0), after(15)]}
    found = of_guards(scores, RECIPE)
    assert list(found) == ["guard old"]
    assert (
        "`old` is lost" in found["guard old"] and "-37.5" in found["guard old"] and "learner.lr" in found["guard old"]
    )
    assert of_guards({"old": [after(29)]}, RECIPE) == {}
    assert of_guards({"old": [scored("base", 30, 0)], "": [after(0)]}, RECIPE) == {}


def test_the_event_of_an_evaluation_says_how_far_it_is_from_the_base_and_from_the_best_before():
    base, good, worse = scored("base", 20, 0), scored("step-000004", 36, 4), scored("step-000008", 8)
    event = told(compare(worse, base, resamples=500, seed=0), "old", RECIPE, [base, good, worse])
    assert event["name"] == "step-000008" and event["of"] == "old" and event["avg"] == 0.2
    assert event["change"][0] == pytest.approx(-0.3) and event["change"][2] < 0
    assert event["best"]["name"] == "step-000004" and event["best"]["change"][0] == pytest.approx(-0.7)
    assert event["lost"] and "`old` is lost" in event["lost_said"] and "-30.0" in event["said"]
    assert "best" not in (first := told(base, "", RECIPE, [base])) and "change" not in first and "lost" not in first
    assert json.loads(json.dumps(event)) == event
    assert "lost" not in told(compare(worse, base, resamples=500, seed=0), "new", RECIPE, [base]), "it guards nothing"


def test_a_guard_without_a_base_is_told_to_guard_nothing():
    [said] = of_guards({"old": [scored("trained", 3)]}, RECIPE).values()
    assert "guards nothing" in said and "evaluation.before=true" in said


def test_the_section_shows_every_set_and_what_became_of_the_guards():
    text = section({"old": [scored("base", 30, 0), after(15)], "new": [scored("base", 15, 0), after(30, 15)]}, RECIPE)
    [old, new] = [line for line in text.splitlines() if line.startswith(("| old |", "| new |"))]
    assert "| lost |" in old and "-37.5" in old and "75.0" in old
    assert "lost" not in new and "+37.5" in new
    assert section({}, RECIPE) == "" == section({"old": []}, RECIPE)
    assert "| kept |" in section({"old": [scored("base", 30, 0), after(30)]}, RECIPE)


def test_a_checkpoint_that_loses_a_guard_is_not_the_best():
    metrics = [
        {"evaluation/avg": 0.5, "evaluation/old/lost": 0.0},
        {"evaluation/avg": 0.9, "evaluation/old/lost": 1.0},
        {"evaluation/avg": 0.7, "evaluation/old/lost": 0.0, "evaluation/new/avg": 0.1},
        {"loss": 1.0},
        {"evaluation/avg": 0.2},
    ]
    values = [value_of(one, "evaluation/avg") for one in metrics]
    assert values == [0.5, None, 0.7, None, 0.2]
    assert kept_checkpoints(list(enumerate(values)), 1, "max") == {2, 4}
    assert value_of(metrics[2], "evaluation/new/avg") == 0.1
    assert value_of(metrics[1], "loss") is None
    named = {"evaluation/lost_skills/avg": 0.5, "evaluation/lost/avg": 0.4, "loss": 1.0}  # sets, and no guards
    assert value_of(named, "loss") == 1.0 and value_of(named | {"evaluation/lost/lost": 1.0}, "loss") is None


def test_scores_of_a_set_are_kept_apart_and_a_summary_tells_of_them(tmp_path):
    directory = RunDirectory.create(tmp_path / "r", RECIPE)
    try:
        directory.write_evaluation(scored("base", 20, 0), [])
        for one in (scored("base", 30, 0), after(15)):
            directory.write_evaluation(one, [], "old")
        assert [one.name for one in directory.read_evaluations()] == ["base"]
        assert [one.name for one in directory.read_evaluations("old")] == ["base", "trained"]
        assert directory.evaluated_sets() == ["old"] and directory.read_evaluations("new") == []
        text = write_summary(directory)
        assert "Warning: The guard `old` is lost" in text and "## Evaluation sets" in text
        directory.rewind(4)  # the trained score is of step 8
        assert [one.name for one in directory.read_evaluations("old")] == ["base"]
        assert [one.name for one in directory.read_evaluations()] == ["base"]
        assert (directory.path / "rewound" / "1" / "evaluation" / "old" / "trained.json").is_file()
    finally:
        directory.release()
