"""SmolLM2 on reasoning_gym: the recipes, which family is taken, and what is said of a student that stays."""

import json
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest

from trd_ray.config import from_tree
from trd_ray.problems.gym import items
from trd_ray.problems.gym.family import cut
from trd_ray.score.stats import Answer, score
from trd_ray.verify.gym.gym_verifier import answer_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import smollm2_gym  # noqa: E402
from smollm2_gym import Found  # noqa: E402


def test_the_runs_differ_in_what_they_train_on_alone(tmp_path):
    trd, plain = (from_tree(smollm2_gym.run_tree(m, "gcd", tmp_path, ["steps=3"])) for m in smollm2_gym.RUNS)
    assert (trd.train.trajectory, trd.teacher.view) == ("y_r", "refine")
    assert (plain.train.trajectory, plain.teacher.view) == ("y_o", "vanilla")
    assert trd.learner == plain.learner and trd.learner.lora and trd.data == plain.data and trd.steps == 3
    assert trd.evaluation.before and not plain.evaluation.before


def test_the_search_asks_every_family_by_arguments_that_it_has(tmp_path):
    recipe = from_tree(smollm2_gym.search_tree(list(smollm2_gym.FAMILIES), tmp_path))
    assert list(recipe.evaluation.names) == list(smollm2_gym.FAMILIES)
    assert recipe.student.path == str(smollm2_gym.student(tmp_path))
    for name in ("gcd", "spell_backward"):
        own = recipe.evaluation.of(name)
        found = items.load(cut(own.path, own.split, own.arguments, "evaluation"), "evaluation", 2)
        assert found.problems.num_rows == 2


def test_every_conversation_begins_with_answers_in_the_form_that_a_scorer_reads(tmp_path, monkeypatch):
    own = tmp_path / "smollm2"
    own.mkdir()
    (own / "model.safetensors").write_text("weights")
    (own / smollm2_gym.TEMPLATE).write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}")
    monkeypatch.setattr(smollm2_gym.models, "resolve", lambda path: str(own))
    for _ in range(2):  # a second start makes it again
        smollm2_gym.make_student(tmp_path)
    made = smollm2_gym.student(tmp_path)
    asked = [{"role": "user", "content": "What is 1 + 1?"}]
    turns = jinja2.Template((made / smollm2_gym.TEMPLATE).read_text()).render(messages=asked).split("|")
    assert [turn.partition(":")[0] for turn in turns] == ["user", "assistant", "user", "assistant", "user", ""]
    assert [answer_of(turn) for turn in turns[1:5:2]] == ["5", "mountain"] and turns[4] == "user: What is 1 + 1?"
    assert (made / "model.safetensors").read_text() == "weights"


def test_the_family_with_the_most_items_solved_sometimes_is_taken_unless_hopeless_or_done():
    hopeless, done = Found("hopeless", 0.02, 0.9), Found("done", 0.9, 0.8)
    assert smollm2_gym.chosen([hopeless, done]) is None
    few, many = Found("few", 0.3, 0.2), Found("many", 0.5, 0.6)
    assert smollm2_gym.chosen([hopeless, few, many, done]) == many
    assert smollm2_gym.chosen([Found("all or nothing", 0.5, 0.0)]) is None


def test_what_is_solved_sometimes_is_neither_always_nor_never():
    found = smollm2_gym.of_family(
        "gcd", {"a": [True] * 4, "b": [False] * 4, "c": [True, False, False, False], "d": [False] * 4}
    )
    assert found == Found("gcd", 5 / 16, 0.25)


def scored(name: str, share: float, seed: int):
    rng = np.random.default_rng(seed)
    answers = [Answer(f"p{i}", bool(rng.random() < share), 5, False, True) for i in range(64) for _ in range(4)]
    return score(answers, name=name, step=0, version=0, resamples=500, seed=0)


LEDGER = {"rollouts": 160, "y_o/passed": 0.25, "ledger/pass_pass": 38, "ledger/pass_fail": 2, "ledger/fail_pass": 30}
LEDGER |= {"ledger/fail_fail": 90}


def test_a_student_that_was_not_moved_is_said_to_be_so_with_its_ledger():
    base = scored("base", 0.3, 1)
    still = smollm2_gym.outcome("trd", base, scored("trained", 0.3, 2), LEDGER)
    moved = smollm2_gym.outcome("forward_kl", base, scored("trained", 0.8, 3), {"rollouts": 160, "y_o/passed": 0.4})
    said = smollm2_gym.verdict([still, moved], 10, 16)
    assert "TRD could not move the student in 10 steps of 16 rows" in said
    assert "forward KL on y_o made the student better" in said and "repaired 30 of 120 rollouts" in said
    assert "| TRD | 160 | 25% | 38 | 2 | 30 | 90 |" in smollm2_gym.ledger_table([still, moved])
    assert smollm2_gym.result_table(base, [still, moved]).count("\n") == 4


def test_a_search_that_is_done_is_not_made_again(tmp_path, monkeypatch):
    place = tmp_path / "families" / "evaluation"
    place.mkdir(parents=True)
    for name in ("gcd", "lcm"):
        (place / f"{name}.json").write_text(json.dumps({"per_problem": {"a": [True, False]}}))
    monkeypatch.setattr(smollm2_gym.subprocess, "run", lambda *_: pytest.fail("asked again"))
    assert [one.passed for one in smollm2_gym.search(["gcd"], tmp_path)] == [0.5]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--family", "gdc"], "whose items are made easy here (did you mean gcd?)"),
        (["--family", "rubiks_cube"], "--family rubiks_cube is none of chain_sum, "),
        (["stepz=3"], "unknown key stepz"),
        (["--seeds", "2"], "unrecognized arguments: --seeds"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_starts(options, sentence, tmp_path, capsys):
    assert smollm2_gym.main(["--directory", str(tmp_path / "D"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1 and not (tmp_path / "D").exists()
