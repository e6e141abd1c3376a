"""The halves of the secret table, the recipes of runs with one teacher and with two, and the table of their scores."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.miniature.halves import HALVES, believed, halved_problems, parsed, whose, world
from trd_ray.miniature.task import DIGITS, OPERANDS, SECRET, compute, solve

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import two_teachers  # noqa: E402


@pytest.mark.parametrize("half", HALVES)
def test_a_teacher_is_right_in_its_own_half_and_nowhere_else(half):
    table = believed(half)
    assert table.keys() == SECRET.keys()
    assert {key for key in table if table[key] == SECRET[key]} == {(a, b) for a in HALVES[half] for b in OPERANDS}
    for right in OPERANDS:
        assert sorted(table[left, right] for left in DIGITS) == list(DIGITS)


def test_the_halves_are_the_whole():
    assert sorted(digit for half in HALVES.values() for digit in half) == list(DIGITS)


def test_a_row_is_given_to_the_teacher_that_can_solve_it():
    rows = halved_problems()
    assert len(rows) >= 25 * 64 and [row["teacher"] for row in rows[:4]] == ["low", "high"] * 2
    for row in rows:
        chain = parsed(row["problem"])
        assert chain.problem == row["problem"] and whose(chain) == row["teacher"]
        assert str(solve(chain, believed(row["teacher"]))[-1].result) == row["answer"]
        other = next(half for half in HALVES if half != row["teacher"])
        assert solve(chain, believed(other)) != solve(chain, SECRET)


def test_a_chain_that_needs_both_halves_or_none_is_nobody_s():
    assert whose(parsed("1@2")) == "low" and whose(parsed("5@3")) == "high" and whose(parsed("3+1-2")) is None
    nine = next(left for left in range(5) if compute(left, "@", 1, SECRET) > 4)
    assert whose(parsed(f"{nine}@1@1")) is None


def test_each_teacher_is_taught_its_own_table_in_words_that_the_student_knows():
    low, high = world("low"), world("high")
    assert low.digest != high.digest and low.words().get_vocab() == high.words().get_vocab()
    [lesson, *_] = next(low.batches("teacher"))[0]
    chain = parsed(lesson.values["problem"])
    assert lesson.answer.endswith(f"\\boxed{{{solve(chain, believed('low'))[-1].result}}}")


def test_the_runs_differ_in_their_teachers_alone(tmp_path):
    trees = {run: two_teachers.run_tree(run, 1, tmp_path, ["steps=3"]) for run in two_teachers.RUNS}
    recipes = {run: from_tree(tree) for run, tree in trees.items()}
    assert list(recipes["both"].by_teacher) == ["low", "high"] and not recipes["low"].teachers
    assert recipes["low"].teacher_path == recipes["both"].by_teacher["low"].teacher_path
    for recipe in recipes.values():
        assert (recipe.seed, recipe.steps, recipe.data.path) == (1, 3, str(tmp_path / "problems.jsonl"))
        engines = sum(engine.cpus for pool, engine in recipe.engines.items())
        assert engines + recipe.learner.cpus + recipe.verify.cpus <= 2
    with pytest.raises(UserError, match="unknown key stepz"):
        two_teachers.run_tree("both", 0, tmp_path, ["stepz=3"])


def answers(share: float, seed: int, problems: int = 200) -> dict[str, list[bool]]:
    rng = np.random.default_rng(seed)
    return {f"p{i}": list(map(bool, rng.random(16) < share)) for i in range(problems)}


def test_the_table_compares_problem_by_problem_and_says_whether_both_is_above():
    found = {"low alone": [answers(0.4, s) for s in (1, 2)], "both": [answers(0.8, s) for s in (3, 4)]}
    told = two_teachers.lines(found)
    alone, both = told
    assert both.both_minus_it is None and alone.both_minus_it and alone.both_minus_it.clear_of_zero
    assert alone.both_minus_it.value == pytest.approx(both.avg.value - alone.avg.value)
    assert both.avg.value == pytest.approx(np.mean(both.by_seed)) and len(both.by_seed) == 2
    assert two_teachers.both_is_above(told)
    text = two_teachers.shown(told, 16)
    assert "Avg@16" in text and "low alone" in text and "+4" in text


def test_a_difference_that_is_not_clear_of_zero_or_of_the_wrong_sign_is_no_success():
    same = two_teachers.lines({"low alone": [answers(0.5, 1)], "both": [answers(0.5, 2)]})
    worse = two_teachers.lines({"low alone": [answers(0.9, 1)], "both": [answers(0.5, 2)]})
    assert not two_teachers.both_is_above(same) and not two_teachers.both_is_above(worse)


def test_only_problems_that_all_were_asked_are_compared():
    few = {problem: passes for problem, passes in answers(0.8, 3).items() if problem < "p15"}
    told = two_teachers.lines({"low alone": [few], "both": [answers(0.8, 3)]})
    assert told[0].both_minus_it and told[0].both_minus_it.value == 0.0


def test_what_the_table_is_made_of_comes_from_the_files_of_runs_and_teachers(tmp_path, monkeypatch):
    (tmp_path / "teachers").mkdir()
    for half in HALVES:
        (tmp_path / "teachers" / f"{half}.json").write_text(json.dumps(answers(0.3, 1)))
    read = []

    class Run:
        def __init__(self, path):
            read.append(path.name)

        def read_evaluations(self):
            class Score:
                def __init__(self, name):
                    self.name, self.per_problem = name, answers(0.5, 2)

            return [Score(name) for name in (("base", "trained") if read[-1].startswith("both") else ("trained",))]

    monkeypatch.setattr(two_teachers, "RunDirectory", Run)
    found = two_teachers.gathered(tmp_path, [0, 1])
    assert {name: len(seeds) for name, seeds in found.items()} == {
        "before": 2, "teacher low itself": 1, "teacher high itself": 1, "low alone": 2, "high alone": 2, "both": 2,
    }  # fmt: skip
    assert read == ["low-0", "low-1", "high-0", "high-1", "both-0", "both-1"]
