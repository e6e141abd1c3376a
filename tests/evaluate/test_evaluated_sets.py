"""`trd evaluate` of a run with evaluation.sets: which problems it asks, in which words, judged by what, beside what."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from runs import a_run, held_out
from trd_ray import miniature
from trd_ray.config import load, stored
from trd_ray.engine.actor import Generation
from trd_ray.errors import UserError
from trd_ray.evaluate import report
from trd_ray.evaluate.plan import plan
from trd_ray.evaluate.samples import Samples
from trd_ray.evaluate.target import require_names, target
from trd_ray.record.directory import RunDirectory
from trd_ray.score.stats import Answer, score
from trd_ray.verify import Verdict, verifier
from trd_ray.views import load_views

MODEL = str(miniature.model_path("student"))
FAMILY = "reasoning_gym:spell_backward"
FEW = ["evaluation.samples=4", "evaluation.max_response_tokens=64", "evaluation.bootstrap=200"]


def sets(folder: Path, n: int = 20) -> list[str]:
    """A guard and another set of the miniature's problems, and few of them in evaluation.path."""
    old = held_out(folder / "old.jsonl", n)
    new = held_out(folder / "new.jsonl", 3, first=40)
    return [
        "evaluation.limit=5",
        f"evaluation.sets={{old: {{path: {old}, guard: true, samples: 2}}, new: {{path: {new}}}}}",
    ]


def scored(run: Path, name: str, ids: list[str], solved: int, samples: int = 2) -> None:
    """A score of the run from before training, of which the first problems are solved."""
    answers = [
        Answer(problem_id, i < solved, 5, truncated=False, answered=True)
        for i, problem_id in enumerate(ids)
        for _ in range(samples)
    ]
    found = score(answers, name="base", step=0, version=0, resamples=200, seed=0)
    (run / "evaluation").mkdir(exist_ok=True)
    RunDirectory(run).write_evaluation(found, [], name)


def ids_of(exam) -> list[str]:
    return [q.problem_id for q in exam.questions]


def test_a_run_is_evaluated_on_its_held_out_problems_and_on_every_set_as_in_training(tmp_path):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path), "prompts.solve=1+{problem}")
    in_training = load_views(stored(folder / "recipe.yaml"), MODEL, MODEL)[""]
    for argument in (folder, folder / "checkpoints" / "step-000005"):
        main, old, new = plan(str(argument), [], []).exams
        assert [main.name, old.name, new.name] == ["miniature-test", "old", "new"]
        sizes = [(len(e.questions), e.evaluation.samples) for e in (main, old, new)]
        assert sizes == [(5, 4), (20, 2), (3, 4)]
        assert str(old).startswith("old (guard): 20 problems x 2 samples") and "guard" not in f"{main}{new}"
        asked = {(e.evaluation.temperature, e.evaluation.response_tokens, e.about["task"]) for e in (main, old, new)}
        assert asked == {(1.0, 64, "math")}
        for q in (q for e in (main, old, new) for q in e.questions):
            assert q.prompt_ids == in_training.evaluation(q.problem["problem"])


@pytest.mark.parametrize("names", [["old"], ["evaluation.sets.old"]])
def test_a_set_can_be_named_like_a_benchmark(tmp_path, names):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path))
    [exam] = plan(str(folder), names, []).exams
    assert (exam.name, len(exam.questions)) == ("old", 20)
    both = plan(str(folder), ["new", str(tmp_path / "old.jsonl")], [])
    assert [(e.name, e.evaluation.samples) for e in both.exams] == [("new", 4), ("old", 4)]
    with pytest.raises(UserError, match="old is named twice"):
        plan(str(folder), [*names, str(tmp_path / "old.jsonl")], [])


def test_an_unknown_set_is_told_with_what_there_is(tmp_path):
    recipe = target(str(a_run(tmp_path / "mine", *sets(tmp_path))), []).recipe
    require_names(["old", "new", "evaluation.sets.old", "aime24", "miniature:test"], recipe)
    for word in ("odl", "evaluation.sets.odl"):
        with pytest.raises(UserError, match=r"there is no set .*odl \(did you mean old\?\): .*sets holds old, new"):
            require_names([word], recipe)
    with pytest.raises(UserError, match="there is no benchmark aime42"):
        require_names(["aime42"], recipe)


def test_a_set_of_a_benchmark_s_name_keeps_files_of_its_own_and_the_name_means_the_benchmark(tmp_path):
    own = held_out(tmp_path / "own.jsonl", 3)
    place = held_out(tmp_path / "aime.jsonl", 4)
    named = [f"evaluation.path={own}", f"evaluation.sets={{aime24: {{path: {place}}}, own: {{path: {place}}}}}"]
    folder = str(a_run(tmp_path / "mine", *FEW, *named))
    assert [exam.name for exam in plan(folder, [], []).exams] == ["own", "set-aime24", "set-own"]
    [exam] = plan(folder, [f"aime24:{place}"], []).exams
    assert exam.name == "aime24" and exam.about["title"].startswith("AIME")
    assert "set" not in exam.about


def test_samples_of_an_evaluation_without_sets_are_used_again_by_one_with_them(tmp_path):
    """What the samples on disk are compared with says nothing about sets."""
    before = plan(str(a_run(tmp_path / "one", *FEW, "evaluation.limit=5")), [], [])
    after = plan(str(a_run(tmp_path / "two", *FEW, *sets(tmp_path))), [], [])
    [was], now = before.exams, after.exams[0]
    assert before.settings(was) == after.settings(now)
    assert (was.name, was.prompts, was.verifiers) == (now.name, now.prompts, now.verifiers)
    settings = before.settings(was) | {"model": {"path": "m", "files": {}}}
    (tmp_path / "s").mkdir()
    Samples.open(tmp_path / "s" / "x.jsonl", settings).close()
    with Samples.open(tmp_path / "s" / "x.jsonl", after.settings(now) | {"model": {"path": "m", "files": {}}}) as kept:
        kept.check_prompt(*next((p, 4, sha) for p, sha in now.prompts.items()))


# Beside the student before training


def test_each_set_is_compared_with_the_run_s_own_score_from_before_training(tmp_path):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path))
    main, old, _ = plan(str(folder), [], []).exams
    scored(folder, "", ids_of(main), 2, samples=4)
    scored(folder, "old", ids_of(old), 15)
    main, old, new = plan(str(folder), [], []).exams
    assert main.base and old.base and new.base is None
    assert (main.base.score.scores["avg@4"].value, old.base.score.scores["avg@2"].value) == (0.4, 0.75)
    assert not (main.about["notes"] or old.about["notes"])
    # --base says another one, and problems that were only named are not of the run.
    with pytest.raises(UserError, match="no score of miniature-test in elsewhere"):
        plan(str(folder), [], [], "elsewhere")
    assert [e.base for e in plan(str(folder), [str(tmp_path / "old.jsonl")], []).exams] == [None]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.temperature=0.5", "asked with evaluation.temperature=1.0 (now 0.5)"),
        ("prompts.solve=Solve {problem}", 'asked with prompts.solve="{problem}" (now "Solve {problem}")'),
        ("verify.answer_in_prose=true", "asked with verify.answer_in_prose=false (now true)"),
        ("evaluation.sets.old.limit=7", "was asked other problems"),
    ],
)
def test_what_was_asked_otherwise_before_training_is_not_compared_and_says_so(tmp_path, override, said):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path))
    scored(folder, "old", ids_of(plan(str(folder), ["old"], []).exams[0]), 15)
    [exam] = plan(str(folder), ["old"], [override]).exams
    assert exam.base is None and said in str(exam) and "not compared with the student before training" in str(exam)
    for harmless in ("seed=7", "evaluation.sets.old.samples=9", "verify.cpus=0.5", "sampler.replicas=2"):
        assert plan(str(folder), ["old"], [harmless]).exams[0].base


def test_a_guard_of_a_run_that_was_not_evaluated_before_says_that_it_is_not_compared(tmp_path):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path), "evaluation.before=false")
    _, old, new = plan(str(folder), [], []).exams
    assert "no score of it from before training" in str(old) and not new.about["notes"]


@pytest.mark.parametrize(("solved", "became"), [(1, "lost"), (15, "kept")])
def test_the_report_shows_what_became_of_a_guard(tmp_path, solved, became):
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path))
    scored(folder, "old", ids_of(plan(str(folder), ["old"], []).exams[0]), 15)
    planned = plan(str(folder), ["old", "new"], [])
    found = [report.result(planned, exam, answered(planned, exam, tmp_path, solved), "mine") for exam in planned.exams]
    assert [report.guard(one) for one in found] == [became, ""]
    assert f"guard {became}" in report.headline(found[0]) and "guard" not in report.headline(found[1])
    header, old, new, mean = report.summary(found, planned.recipe)
    assert header[-2:] == ["Avg@n - base", "guard"] and old[-1] == became and new[-2:] == ["-", ""]
    assert len(mean) == len(header)  # without a difference, since one of them has no base
    assert any("`old` is lost" in text for text in report.warned(found[0], planned.recipe)) == (became == "lost")
    assert found[0]["base_differs"] == [] and found[0]["benchmark"]["set"] == "old"
    (tmp_path / "out" / "evaluation").mkdir(parents=True)
    for one in found:
        report.write(tmp_path / "out", one)
    text = report.write_markdown(tmp_path / "out", planned.recipe).read_text()
    assert f" {became} |" in text and "base" in text


def answered(planned, exam, folder: Path, solved: int) -> Samples:
    """Samples of which the first problems are solved."""
    settings = planned.settings(exam) | {"model": {"path": "m", "files": {}}}
    samples = Samples.open(folder / f"{exam.name}.samples", settings)
    made = Generation(np.array([1, 2, 3], np.int32), "9", "stop", np.zeros(3), 0, "sampler-0", 0.0, 0.1)
    for i, q in enumerate(exam.questions):
        for sample in range(exam.evaluation.samples):
            samples.add((q.problem_id, sample), 0, exam.prompts[q.problem_id], made)
            verdict = Verdict(i < solved, float(i < solved), "9", "", 0.0)
            samples.judge((q.problem_id, sample), exam.verifiers[q.problem_id], verdict)
    return samples


# Words and verifiers of their own

SCORE = "def score(text, problem):\n    return float(text.endswith(problem['answer']))\n"


def test_sets_of_a_run_are_judged_by_its_own_function_whose_file_is_gone(tmp_path):
    rewards = tmp_path / "rewards.py"
    rewards.write_text(SCORE)
    folder = a_run(tmp_path / "mine", *FEW, *sets(tmp_path), f"verify.function={rewards}:score")
    rewards.unlink()
    planned = plan(str(folder), [], [])
    assert any("rewards.py:score" in note for note in planned.inputs.notes)
    for exam in planned.exams:
        problem, judge = exam.questions[0].problem, verifier(exam.questions[0].verify)
        assert exam.about["task"] == "plain"
        verdicts = [judge(text, problem).passed for text in (f"so {problem['answer']}", "so \\boxed{x}")]
        assert verdicts == [True, False]


def test_a_file_that_is_named_is_judged_by_the_run_s_own_function_and_a_benchmark_is_not(tmp_path):
    rewards = tmp_path / "rewards.py"
    rewards.write_text(SCORE)
    folder = str(a_run(tmp_path / "mine", *FEW, f"verify.function={rewards}:score"))
    own = tmp_path / "other.jsonl"
    own.write_text(json.dumps({"problem": "7+2"}) + "\n")  # a function of one's own needs no answer
    [exam] = plan(folder, [str(own)], []).exams
    assert exam.questions[0].verify.function == f"{rewards}:score" and exam.about["task"] == "plain"
    [exam] = plan(folder, [f"aime24:{held_out(tmp_path / 'aime.jsonl', 3)}"], []).exams
    assert exam.questions[0].verify.function is None and exam.about["task"] == "math"


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_items_of_reasoning_gym_are_those_that_the_run_held_out_and_their_scorers_judge(tmp_path):
    """The index range is cut as for training, although nothing of the training data is read."""
    cut = "{size: 8, test: 4, seed: 1, min_word_len: 3, max_word_len: 4}"
    trained = [f"data.path={FAMILY}", f"data.arguments={cut}", f"evaluation.path={FAMILY}"]
    more = (
        f"evaluation.sets={{same: {{path: {FAMILY}, limit: 3}}, far: {{path: {FAMILY}, arguments: {{seed: 90000}}}}}}"
    )
    folder = str(a_run(tmp_path / "mine", *FEW, *trained, more))
    main, same, far = plan(folder, [], ["evaluation.max_response_tokens=8", "sampler.max_model_len=400"]).exams
    assert ids_of(main) == [f"spell_backward/1/{i}" for i in range(8, 12)]
    assert ids_of(same) == ids_of(main)[:3] and ids_of(far)[0] == "spell_backward/90000/1000"
    for exam in (main, same, far):
        assert exam.about["task"] == "plain" and not exam.questions[0].verify.chosen
    problem = same.questions[0].problem
    right, judge = problem["answer"], verifier(same.questions[0].verify)
    assert judge(f"<answer>{right}</answer>", problem).passed and not judge("<answer>no</answer>", problem).passed
    named = plan(folder, [FAMILY, "same"], ["evaluation.max_response_tokens=8"]).exams
    assert ids_of(named[0]) == ids_of(main)


def test_a_run_on_generated_problems_asks_its_held_out_file_as_it_did_in_training(tmp_path):
    own = held_out(tmp_path / "own.jsonl", 3)
    keys = [f"data.path={FAMILY}", f"evaluation.path={own}", f"evaluation.sets={{more: {{path: {own}, limit: 2}}}}"]
    folder = a_run(tmp_path / "mine", *FEW, *keys)
    assert stored(folder / "recipe.yaml").task == "plain"
    assert [exam.about["task"] for exam in plan(str(folder), [], []).exams] == ["math", "math"]


# Several teachers

TWO = [
    "teacher={}",
    "teachers={strong: {mode: opd, path: 'miniature:teacher', refiner: {n: 2}}, own: {mode: opsd}}",
]


@pytest.mark.parametrize(
    "data",
    [
        ["data.teacher_column=topic"],
        [
            "data={sources: [{name: a, path: 'miniature:train', teacher: strong, prompts: {solve: 'a {problem}'}}, "
            "{name: b, path: 'miniature:tune', teacher: own}]}"
        ],
    ],
)
def test_a_run_of_several_teachers_is_evaluated_like_any_other(tmp_path, data):
    """They refine and teach, and an evaluation starts neither."""
    alone = plan(str(a_run(tmp_path / "one", *FEW, *sets(tmp_path))), [], [])
    folder = a_run(tmp_path / "two", *FEW, *sets(tmp_path), *TWO, *data)
    taught = plan(str(folder), [], [])
    assert [e.prompts for e in taught.exams] == [e.prompts for e in alone.exams]
    assert [taught.settings(e) for e in taught.exams] == [alone.settings(e) for e in alone.exams]
    assert list(taught.recipe.by_teacher) == [""] and taught.inputs.job == "evaluate"


def test_a_recipe_of_several_teachers_is_evaluated_by_its_student(tmp_path):
    overrides = [*FEW, *sets(tmp_path), *TWO, "data.teacher_column=topic"]
    planned = plan("miniature_opd", [], overrides)
    assert [exam.name for exam in planned.exams] == ["miniature-test", "old", "new"]
    assert set(planned.inputs.teacher_path) == {"strong", "own"} == set(load("miniature_opd", overrides).by_teacher)
    assert set(planned.inputs.teacher_path.values()) == {planned.inputs.student_path}
