"""The functions of the public surface up to where a run starts, and what a run's directory shows as tables."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runs import a_run
from trd_ray import api, config
from trd_ray.errors import UserError
from trd_ray.problems.load import load_problems
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score import stats

ROOT = Path(__file__).parents[2]
ROWS = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(3)]
HEAVY = ["torch", "ray", "vllm", "transformers", "scipy", "datasets", "pandas"]


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """What a run's own process would be asked; none is started."""
    found: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "run_apart", lambda request, quiet: found.append(request) or "")
    return found


def recipe_of(request: dict[str, Any]) -> config.Recipe:
    return config.load(request["recipe"])


def test_the_surface_is_imported_without_anything_heavy():
    code = f"import sys, trd_ray.api; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_train_asks_for_the_recipe_with_what_was_given(asked, tmp_path):
    run = api.train("miniature_opsd", ROWS, held_out=ROWS[:1], run_dir="runs/mine", steps=3, resume="auto")
    [request] = asked
    recipe = recipe_of(request)
    assert run.path == tmp_path / "runs" / "mine" == recipe.directory
    assert recipe.steps == 3 and recipe.rollouts_per_step == 64  # the recipe's own
    assert Path(recipe.data.path).parent == tmp_path / "runs" / "given" == Path(recipe.evaluation.path).parent
    assert request["words"] == ["train", str(tmp_path / "runs" / "given" / "mine.yaml"), "--resume=auto"]


def test_the_same_call_asks_for_the_same_run_so_that_it_can_go_on(asked):
    for _ in range(2):
        api.train("miniature_opsd", [dict(row) for row in ROWS], run_dir="runs/mine", resume="auto")
    assert recipe_of(asked[0]) == recipe_of(asked[1])


def test_problems_of_one_s_own_are_not_evaluated_on_those_of_the_miniature(asked):
    api.train({"student": {"path": "smollm2"}}, ROWS)
    api.train({"student": {"path": "smollm2"}, "evaluation": {"path": "mine.jsonl"}}, ROWS, name="other")
    assert [recipe_of(request).evaluation.path for request in asked] == [None, "mine.jsonl"]


def test_problems_that_are_given_replace_those_of_the_recipe_whatever_their_format(asked):
    data = {"path": "a/b", "format": "hub", "columns": {"answer": "target"}, "limit": 2}
    api.train({"data": data, "evaluation": data}, [{"problem": "?", "target": 1}], held_out=ROWS)
    recipe = recipe_of(asked[0])
    assert (recipe.data.format, recipe.evaluation.format, recipe.data.limit) == ("auto", "auto", 2)
    assert recipe.data.columns == {"answer": "target"}


@pytest.mark.parametrize(
    "data",
    [
        {"path": "reasoning_gym:leg_counting", "arguments": {"size": 5}},
        {"path": "taco", "format": "taco", "difficulty": ["EASY"]},
        {"sources": [{"name": "one", "path": "a.jsonl"}]},
    ],
    ids=["generated", "taco", "mixed"],
)
def test_nothing_of_the_recipe_s_own_source_stands_in_the_way_of_problems_that_are_given(asked, data):
    held_out = {"path": "reasoning_gym:leg_counting", "arguments": {"size": 5}}
    api.train({"data": data, "evaluation": held_out}, ROWS, held_out=ROWS[:1])
    recipe = recipe_of(asked[0])
    assert load_problems(recipe.data).table.num_rows == 3 and load_problems(recipe.evaluation).table.num_rows == 1


def test_own_metrics_and_callbacks_are_named_in_the_recipe(asked, tmp_path):
    (tmp_path / "my.py").write_text("def words(rows): ...\nclass Watch: ...\n")
    api.train("miniature_opsd", metric="my.py:words", callbacks=["my.py:Watch"], run_dir="runs/mine")
    recipe = recipe_of(asked[0])
    assert recipe.metrics.function == "my.py:words" and recipe.callbacks == ["my.py:Watch"]


def test_evaluate_asks_as_the_command_line_does(asked, tmp_path):
    run = api.evaluate("miniature:student", "miniature:test", problems=ROWS, name="it", **{"evaluation.samples": 2})
    [request] = asked
    file = next((tmp_path / "runs" / "evaluate" / "given").glob("held-out-*.jsonl"))
    assert request["benchmarks"] == ["miniature:test", str(file)] and request["overrides"] == ["evaluation.samples=2"]
    assert run.path == tmp_path / "runs" / "evaluate" / "miniature-student"
    api.evaluate({"student": {"path": "miniature:student"}, "name": "mine"}, ["miniature:test"])
    assert Path(asked[1]["model"]).name == "mine-evaluate.yaml"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: api.train("miniature_opsd", learner={"lrr": 1}), "unknown key learner.lrr"),
        (lambda: api.train("miniature_opsd", resume="maybe"), 'resume is "no", "auto" or "required"'),  # type: ignore[arg-type]
        (lambda: api.train("miniature_opsd", ROWS, lambda text, problem: True), "a lambda has no name"),
        (lambda: api.evaluate("miniature:student", "gsm9k"), "gsm9k"),
        (lambda: api.open_run("no/such/run"), "is no run directory"),
        (lambda: api.verify(["a"], ROWS), "there are 1 texts and 3 problems"),
        (lambda: api.verify(["a"], ROWS, timeout=3), "unknown key verify.timeout"),
        (lambda: api.verify(["a"], ROWS[:1], recipe={"data": "a.jsonl"}), "data must be a group of keys"),
    ],
)
def test_a_mistake_is_raised_before_a_process_is_started(asked, call, said):
    with pytest.raises(UserError, match=said):
        call()
    assert asked == []


def test_verify_judges_each_text_by_its_problem_or_all_by_the_only_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [r"\boxed{1}", r"\boxed{2}", r"\boxed{4}"]
    assert [verdict.passed for verdict in api.verify(texts, ROWS)] == [True, True, False]
    assert [verdict.passed for verdict in api.verify(texts, ROWS[1])] == [False, True, False]
    assert api.verify(r"\boxed{1}", ROWS[0])[0].extracted == "1"


def test_a_row_that_names_no_verifier_is_a_verdict_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    by = {"verify": {"by": "kind", "functions": {"maths": {"function": "math"}}}}
    rows = [row | {"kind": kind} for row, kind in zip(ROWS, ("maths", "mathz", "maths"), strict=True)]
    found = api.verify([r"\boxed{1}"] * 3, rows, recipe=by)
    assert [verdict.passed for verdict in found] == [True, False, False]
    assert not found[1].judged and "mathz" in found[1].detail and found[2].judged


def test_calls_of_a_function_are_made_together_as_a_run_makes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "waits.py").write_text(
        f"import pathlib, time\nhere = pathlib.Path({str(tmp_path)!r})\n"
        "def meets(text, problem):\n    (here / text).touch()\n    deadline = time.time() + 20\n"
        "    while len(list(here.glob('meet-*'))) < 2 and time.time() < deadline:\n        time.sleep(0.02)\n"
        "    return len(list(here.glob('meet-*'))) == 2\n"
    )
    function = f"{tmp_path / 'waits.py'}:meets"
    found = api.verify(["meet-1", "meet-2"], ROWS[0], function, concurrency=2, deadline_s=30)
    assert [verdict.passed for verdict in found] == [True, True]


# What a run's directory shows


@pytest.fixture
def run(tmp_path) -> api.Run:
    sets = {"old": {"path": "miniature:tune", "guard": True}, "new": {"path": "miniature:tune"}}
    directory = RunDirectory.create(tmp_path / "run", config.from_tree({"steps": 2, "evaluation": {"sets": sets}}))
    row = {"problem_id": "p", "problem": "1+1?", "answer": "2", "reference": "", "epoch": 0, "sample_index": 0}
    for step in (1, 2):
        made = row | {"row": step - 1, "step": step - 1, "seed": step, "y_o": {"ids": [1], "text": "2", "passed": True}}
        directory.write_rows(step, to_table([made]))
    lines = [{"step": 1, "loss": 0.5, "own/words": 3.0}, {"step": 2, "loss": 0.25}]
    (directory.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = [stats.Answer(f"p{i}", i > 0, 3, False, True) for i in range(3)]
    base = stats.score(answers, name="base", step=0, version=0, resamples=100, seed=0)
    trained = stats.score(answers, name="trained", step=2, version=2, resamples=100, seed=0)
    directory.write_evaluation(base, [])
    directory.write_evaluation(stats.compare(trained, base, resamples=100, seed=0), [])
    for name in sets:
        directory.write_evaluation(base, [], name)
    directory.release()
    return api.open_run(tmp_path / "run")


def test_metrics_are_a_frame_by_step(run):
    assert run.metrics.index.tolist() == [1, 2] and run.metrics["loss"].tolist() == [0.5, 0.25]
    assert run.metrics["own/words"].isna().tolist() == [False, True]


def test_rows_are_arrow_and_a_data_set(run, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert run.rows["step"].to_pylist() == [1, 2]
    assert run.dataset()[1]["y_o"]["text"] == "2"


def test_scores_have_their_intervals_and_the_difference_to_the_base(run):
    scores = run.scores[(run.scores["measure"] == "avg@1") & (run.scores["set"] == "")]
    assert scores["evaluation"].tolist() == ["base", "trained"] and scores["value"].round(3).tolist() == [0.667] * 2
    assert scores["difference"].tolist()[1] == 0.0 and (scores["low"] < scores["high"]).all()


def test_scores_of_evaluation_sets_have_their_names_and_guards_are_marked(run):
    scores = run.scores[run.scores["measure"] == "avg@1"]
    marked = {(of, name): bool(guard) for of, name, guard in scores[["set", "evaluation", "guard"]].to_numpy()}
    base = {("", "base"): False, ("old", "base"): True, ("new", "base"): False}
    assert marked == base | {("", "trained"): False}


def test_evaluate_takes_the_sets_of_a_run_by_name_and_refuses_another(asked, tmp_path):
    folder = a_run(tmp_path / "mine", "evaluation.sets={old: {path: 'miniature:tune', guard: true}}")
    api.evaluate(str(folder))
    api.evaluate(api.open_run(folder), "old", **{"evaluation.sets.old.samples": 2})
    assert [request["benchmarks"] for request in asked] == [[], ["old"]]
    assert asked[1]["overrides"] == ["evaluation.sets.old.samples=2"]
    with pytest.raises(UserError, match=r"there is no set odl \(did you mean old\?\): evaluation.sets holds old"):
        api.evaluate(str(folder), "odl")


def test_a_run_that_has_done_nothing_yet_is_empty_tables(tmp_path):
    RunDirectory.create(tmp_path / "run", config.from_tree({})).release()
    run = api.open_run(tmp_path / "run")
    assert len(run.metrics) == len(run.scores) == run.rows.num_rows == 0 and run.checkpoints == [] == list(run.summary)
    assert run.recipe["name"] == "run"
    for refused in (lambda: run.model, run.dataset):
        with pytest.raises(UserError, match="has no (checkpoint|rows yet)"):
            refused()
