"""`trd evaluate`: what it is told to evaluate, and its samples on disk."""

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from runs import a_run, held_out
from trd_ray import miniature
from trd_ray.config import EvaluationConfig, VerifyConfig
from trd_ray.engine.actor import Generation
from trd_ray.errors import UserError
from trd_ray.evaluate.command import _claim
from trd_ray.evaluate.plan import plan
from trd_ray.evaluate.progress import Progress
from trd_ray.evaluate.report import _named_apart
from trd_ray.evaluate.samples import Samples, verifier_of
from trd_ray.evaluate.target import target
from trd_ray.evaluate.weights import difference, fingerprint
from trd_ray.rows import TRAJECTORY
from trd_ray.score.stats import Answer, compare, score, table
from trd_ray.stream.answers import Ask, Question, Sampled, Verified, answers, seed_of_sample
from trd_ray.verify import Verdict, unjudged
from trd_ray.verify.code.tests import Tests

pytestmark = pytest.mark.timeout(400)


# What is evaluated

MODEL = str(miniature.model_path("student"))


def test_held_out_problems_of_a_run_are_read_by_the_columns_of_its_training_data(tmp_path):
    own = tmp_path / "held_out.jsonl"
    own.write_text(json.dumps({"question": "7+2", "final": "9"}))
    columns = "data.columns={problem: question, answer: final}"
    folder = a_run(tmp_path / "mine", columns, f"evaluation.path={own}")
    for names in ([], [str(own)]):
        [exam] = plan(str(folder), names, ["evaluation.max_response_tokens=20"]).exams
        assert [q.problem["answer"] for q in exam.questions] == ["9"]


def test_a_file_of_ones_own_is_asked_and_judged_as_in_the_run_where_a_function_of_one_s_own_judges(tmp_path):
    score, own, other = (tmp_path / name for name in ("score.py", "held_out.jsonl", "other.jsonl"))
    score.write_text("def score(completion, level): return level\n")
    for file in (own, other):
        file.write_text(json.dumps({"problem": "7+2", "level": 1}))  # such a function needs no answer
    folder = a_run(tmp_path / "mine", f"verify.function={score}:score", "prompts.solve=null", f"evaluation.path={own}")
    asked = [
        plan(str(folder), names, ["evaluation.max_response_tokens=20"]).exams[0].questions[0]
        for names in ([], [str(other)])
    ]
    for question in asked:
        assert question.verify.function == f"{score}:score"
        assert json.loads(question.problem["extra"]) == {"level": 1}
    assert asked[0].prompt_ids == asked[1].prompt_ids  # in the words of a plain task


@pytest.mark.parametrize(
    ("place", "steps"),
    [("", 10), ("checkpoints/step-000005", 5), ("checkpoints/step-000005/model", 5)],
)
def test_a_checkpoint_of_a_run_is_asked_in_the_words_it_was_trained_with(tmp_path, place, steps):
    folder = a_run(tmp_path / "mine", "prompts.system=Be brief.", "evaluation.samples=3", "learner.lr=1e-5")
    asked = target(str(folder / place), ["seed=7"])
    r = asked.recipe
    assert r.student.path == str(folder / f"checkpoints/step-{steps:06d}/model")
    assert (asked.name, asked.step) == (f"mine-step-{steps:06d}", steps)
    assert (r.prompts.system, r.evaluation.samples, r.seed) == ("Be brief.", 3, 7)
    assert r.sampler.dtype == "float32"  # of its learner
    assert r.sampler.max_model_len is None and "max_response_tokens" in r.evaluation.model_fields_set
    assert r.run_dir == f"runs/evaluate/{asked.name}"


def test_a_length_that_the_run_s_context_gave_holds_for_its_checkpoints_and_the_paper_s_does_not(tmp_path):
    small = a_run(tmp_path / "small", "evaluation.max_response_tokens=4000")
    assert target(str(small), []).recipe.evaluation.max_response_tokens == 4000
    large = a_run(tmp_path / "large", "evaluation.max_response_tokens=16384")  # what an empty one became
    assert "max_response_tokens" not in target(str(large), []).recipe.evaluation.model_fields_set
    empty = a_run(tmp_path / "empty", "evaluation.max_response_tokens=null")
    assert target(str(empty), []).recipe.evaluation.max_response_tokens is None


def test_a_model_s_own_context_limits_an_evaluation_on_one_s_own_file(tmp_path):
    own = held_out(tmp_path / "own.jsonl", 3)
    [exam] = plan(MODEL, [], [f"evaluation.path={own}"]).exams
    assert exam.settings["evaluation"]["max_response_tokens"] == exam.evaluation.response_tokens
    assert (
        exam.evaluation.response_tokens + exam.prompt_tokens.longest
        == plan(MODEL, [], [f"evaluation.path={own}"]).recipe.sampler.max_model_len
    )


def test_what_is_wrong_with_several_benchmarks_is_told_at_once(tmp_path):
    names = [str(held_out(tmp_path / f"{n}.jsonl", n)) for n in (2, 3)]
    with pytest.raises(UserError) as refused:
        plan(MODEL, [*names, "aime42"], [])
    assert len(refused.value.sentences) == 1  # what is named comes first
    with pytest.raises(UserError) as refused:
        plan(MODEL, names, [])
    assert [one.partition(":")[0] for one in refused.value.sentences] == ["2", "3"]


def test_a_model_a_recipe_and_the_miniature_are_told_apart(tmp_path):
    folder = tmp_path / "qwen"
    shutil.copytree(miniature.model_path("student"), folder)
    assert target(str(folder), []).recipe.student.path == str(folder)
    assert target("Qwen/Qwen3-8B", []).name == "Qwen-Qwen3-8B"
    assert target("miniature:teacher", []).recipe.prompts.solve == "{problem}"
    recipe = target("paper_opsd_8b", ["student.path=Qwen/Qwen3-4B"]).recipe
    assert (recipe.student.path, recipe.sampler.replicas) == ("Qwen/Qwen3-4B", 5)
    with pytest.raises(UserError, match=r"did you mean miniature_opd"):
        target("miniature_opds", [])
    with pytest.raises(UserError, match=r"^there is no model miniature:studnet: it is miniature:student or "):
        target("miniature:studnet", [])


def test_a_benchmark_brings_its_own_limits_and_what_is_set_goes_before(tmp_path):
    own = str(held_out(tmp_path / "own.jsonl", 3))
    short = "evaluation.max_response_tokens=100"
    [exam] = plan("miniature:student", [own], [short, "evaluation.limit=2"]).exams
    assert (exam.name, len(exam.questions)) == ("own", 2)
    assert (exam.evaluation.samples, exam.evaluation.max_response_tokens) == (16, 100)
    assert exam.evaluation.temperature == 1  # the recipe's, before the paper's 0.6

    model = str(miniature.model_path("student"))
    with pytest.raises(UserError, match=r"own: .*38912.*context is \d+: lower evaluation.max_response_tokens"):
        plan(model, [own], [])
    [exam] = plan(model, [own], [short]).exams
    assert (exam.evaluation.temperature, exam.evaluation.top_p, exam.evaluation.samples) == (0.6, 0.95, 16)


def test_bounds_in_which_an_evaluation_does_not_move_are_told(tmp_path):
    own = [str(held_out(tmp_path / "own.jsonl", 2))]
    [note] = plan("miniature:student", own, ["sampler.replicas={max: 3}"]).inputs.notes
    assert note.startswith("sampler.replicas are bounds, ") and note.endswith("of the sampler stays at 1")
    assert plan("miniature:student", own, ["sampler.replicas=3", "refiner.replicas={max: 3}"]).inputs.notes == []


def test_engines_get_the_context_that_the_longest_benchmark_needs(tmp_path):
    names = [str(held_out(tmp_path / f"{n}.jsonl", n)) for n in (2, 3)]
    planned = plan("miniature:student", names, [])
    longest = max(exam.prompt_tokens.longest for exam in planned.exams) + 128
    assert planned.recipe.sampler.max_model_len == longest
    assert plan("miniature:student", names, ["sampler.max_model_len=200"]).recipe.sampler.max_model_len == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["miniature:student", "aime42"], r"aime42.*did you mean aime2\d"),
        (["OWN"], "own.jsonl is no model: name first a model folder"),
        (["aime24", "miniature:student"], "aime24 is no model"),
        ([MODEL], r"nothing to evaluate .* on: name a file of problems, or benchmarks of this list\n.*aime24"),
        (["miniature:student", "OWN", "OWN"], "named twice"),
        (["miniature:student", "OWN", "evaluation.sample=3"], r"evaluation.sample \(did you mean samples"),
        (["miniature:student", "OWN", "--base", "nowhere"], "no score of own in nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(arguments, said, tmp_path, capsys):
    from trd_ray.cli import main

    own = str(held_out(tmp_path / "own.jsonl", 3))
    arguments = [own if a == "OWN" else a for a in arguments]
    assert main(["evaluate", *arguments, f"run_dir={tmp_path / 'run'}"]) == 2
    assert re.search(said, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_a_directory_of_a_training_run_is_not_written_into(tmp_path, capsys):
    from trd_ray.cli import main

    folder = a_run(tmp_path / "mine")
    own = str(held_out(tmp_path / "own.jsonl", 3))
    assert main(["evaluate", "miniature:student", own, f"run_dir={folder}"]) == 2
    assert "holds a training run: set run_dir" in capsys.readouterr().err


def test_a_new_directory_has_no_folders_that_an_evaluation_leaves_empty(tmp_path):
    planned = plan("miniature:student", [str(held_out(tmp_path / "own.jsonl", 2))], [])
    directory = _claim(tmp_path / "run", planned.recipe)
    directory.release()
    assert {p.name for p in directory.path.iterdir() if p.is_dir()} == {"evaluation", "logs"}


def test_the_thinking_mode_is_stated_and_told(tmp_path):
    model = tmp_path / "thinker"
    shutil.copytree(miniature.model_path("student"), model)
    own, asked = str(held_out(tmp_path / "own.jsonl", 2)), ["evaluation.max_response_tokens=64"]
    [exam] = plan(str(model), [own], asked).exams
    assert "no thinking mode" in exam.thinking
    template = model / "chat_template.jinja"
    template.write_text("{# enable_thinking #}" + template.read_text())
    with pytest.raises(UserError, match=r"own: .*set evaluation.chat_template_kwargs=\{enable_thinking: true\}, or"):
        plan(str(model), [own], asked)
    [exam] = plan(str(model), [own], [*asked, "evaluation.chat_template_kwargs={enable_thinking: true}"]).exams
    assert exam.thinking == "chat template with enable_thinking=true"
    assert exam.settings["evaluation"]["chat_template_kwargs"] == {"enable_thinking": True}


# Samples on disk


def generation(text: str) -> Generation:
    return Generation(np.array([1, 2, 3], np.int32), text, "stop", np.zeros(3), 0, "sampler-0", 0.0, 0.1)


SETTINGS = {"seed": 0, "evaluation": {"temperature": 0.6}, "model": {"path": "m", "files": {}}}


def written(place: Path, n: int = 3) -> Path:
    with Samples.open(place, SETTINGS) as samples:
        for i in range(n):
            samples.add(("p", i), i, "prompt", generation(f"answer {i}"))
            samples.judge(("p", i), "v1", Verdict(i > 0, float(i > 0), str(i), "", 0.0))
    return place


def test_a_verdict_that_says_nothing_about_the_sample_is_made_again_by_the_next_start(tmp_path):
    place = written(tmp_path / "samples.jsonl")
    with Samples.open(place, SETTINGS) as samples:
        samples.judge(("p", 1), "v2", unjudged("it died twice"))
        assert samples.verified(("p", 1), "v2") and not samples.passed(("p", 1))  # so that this start ends
    with Samples.open(place, SETTINGS) as samples:
        assert not samples.verified(("p", 1), "v2") and samples.verified(("p", 2), "v1")


def test_a_line_that_a_crash_cut_short_is_cut_off_and_the_rest_is_there(tmp_path):
    whole = written(tmp_path / "whole.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, 10, *(e + d for e in ends for d in (-1, 0, 7))}:
        place = tmp_path / "cut.jsonl"
        place.write_bytes(whole[:cut])
        lines = max(0, whole[:cut].count(b"\n") - 1)  # without that of the settings
        with Samples.open(place, SETTINGS) as samples:
            assert sum(("p", i) in samples for i in range(3)) == (lines + 1) // 2
            assert sum(samples.verified(("p", i), "v1") for i in range(3)) == lines // 2
            for i in range(3):
                if ("p", i) not in samples:
                    samples.add(("p", i), i, "prompt", generation(f"answer {i}"))
                if not samples.verified(("p", i), "v1"):
                    samples.judge(("p", i), "v1", Verdict(i > 0, float(i > 0), str(i), "", 0.0))
        assert place.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path):
    place = written(tmp_path / "s.jsonl")
    lines = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(b"".join([*lines[:3], b"\0" * 20 + b"\n", *lines[3:]]))
    with pytest.raises(UserError, match=r"line 4 of .*s.jsonl is damaged: delete that line"):
        Samples.open(place, SETTINGS)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"\0\0\n", "line 1 of .*s.jsonl, which says how .* is damaged: put it back"),
        (b'{"format": 1, "settings": {}}\n', "line 1 of .*s.jsonl, which says how .* is damaged: put it back"),
        (b'{"format": 0, "settings": {"model": {}}}\n', "another version of this program: set run_dir"),
    ],
)
def test_a_first_line_that_does_not_say_how_samples_were_made_is_refused(tmp_path, first, said):
    place = written(tmp_path / "s.jsonl")
    _, *rest = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(b"".join([first, *rest]))
    for read in (Samples.model, lambda path: Samples.open(path, SETTINGS)):
        with pytest.raises(UserError, match=said):
            read(place)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"evaluation": {"temperature": 1.0}}, r"put back evaluation.temperature=0.6 \(now 1.0\)"),
        ({"seed": 1}, r"put back seed=0 \(now 1\)"),
        (
            {"model": {"path": "n", "files": {"a": {"bytes": 1, "blake2b": ""}}}},
            "other weights .a of m is not that of n",
        ),
    ],
)
def test_samples_of_other_settings_or_weights_are_refused_with_what_differs(tmp_path, changed, said):
    place = written(tmp_path / "s.jsonl")
    before = place.read_bytes()
    with pytest.raises(UserError, match=said) as refused:
        Samples.open(place, SETTINGS | changed)
    assert "set run_dir to a new place" in str(refused.value)
    assert place.read_bytes() == before


def test_samples_in_parquet_are_trajectories_with_their_verdicts(tmp_path):
    place = tmp_path / "s.parquet"
    with Samples.open(written(tmp_path / "s.jsonl"), SETTINGS) as samples:
        samples.add(("p", 3), 3, "prompt", generation("a\ud800"))
        samples.judge(("p", 3), "v1", Verdict(False, 0.0, "", "no answer", 0.5, "none found"))
        samples.parquet(place, [("p", 3), ("p", 1)])
    table = pq.read_table(place)
    assert table.schema.field("y_o").type == TRAJECTORY and table["tokens"].to_pylist() == [3, 3]
    broken, right = table["y_o"].to_pylist()
    assert (broken["text"], broken["passed"], broken["detail"]) == ("a?", False, "no answer")
    assert (broken["feedback"], broken["verify_seconds"], broken["logprobs"]) == ("none found", 0.5, None)
    assert (right["ids"], right["text"], right["passed"]) == ([1, 2, 3], "answer 1", True)


def test_samples_of_another_prompt_are_refused(tmp_path):
    with Samples.open(written(tmp_path / "s.jsonl"), SETTINGS) as samples:
        samples.check_prompt("p", 3, "prompt")
        samples.check_prompt("q", 3, "another")
        with pytest.raises(UserError, match="another prompt for problem p"):
            samples.check_prompt("p", 3, "another")


def test_a_verdict_of_another_verifier_or_answer_key_is_made_anew():
    problem = {"answer": "4", "tests": None}
    same = verifier_of(problem, VerifyConfig())
    assert same == verifier_of(problem, VerifyConfig(cpus=0.1, max_tasks=1))
    others = [verifier_of(problem, VerifyConfig(timeout_s=9)), verifier_of(problem | {"answer": "5"}, VerifyConfig())]
    others.append(verifier_of(problem | {"tests": b"x"}, VerifyConfig()))
    assert len({same, *others}) == 4


def test_weights_are_told_apart_by_content_and_not_by_place(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    one, copy = tmp_path / "one", tmp_path / "copy"
    shutil.copytree(miniature.model_path("student"), one)
    first = fingerprint(str(one), None)
    shutil.copytree(one, copy)
    os.utime(copy / "model.safetensors", (0, 0))
    assert difference(first, fingerprint(str(copy), None)) == ""
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_file(weights, copy / "model.safetensors")
    assert "model.safetensors" in difference(first, fingerprint(str(copy), None, known=first))


def test_a_seed_depends_on_the_problem_and_the_sample_alone():
    seeds = {seed_of_sample(s, p, i) for s in range(3) for p in ("a", "b", "1") for i in range(20)}
    assert len(seeds) == 180 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of_sample(0, "a", 1) == seed_of_sample(0, "a", 1)


# What is seen meanwhile


def test_a_log_gets_lines_with_counts_and_the_time_left():
    console = Console(file=open(os.devnull, "w"), record=True, width=200)  # noqa: SIM115
    with Progress({"aime24": (2, 2), "amobench": (1, 2)}, console) as progress:
        progress.kept("aime24", "a", True)
        progress.begin()
        for problem, passed in (("a", True), ("b", False)):
            progress.sampled("aime24", 100)
            progress.verified("aime24", problem, passed)
        progress.lines()
    assert "aime24: 1/2 problems, 3/4 samples, 66.7% of 3 passed; " in console.export_text()


def test_a_terminal_shows_which_engines_are_ready_while_an_evaluation_starts():
    console = Console(file=open(os.devnull, "w"), record=True, width=80)  # noqa: SIM115
    progress = Progress({"aime24": (2, 2)}, console)
    progress.starting({"sampler": (1, 2)})
    console.print(progress._panel())
    assert "1 of 2" in console.export_text()
    progress.starting({"sampler": (2, 2)})
    console.print(progress._panel())
    assert "2 of 2" not in console.export_text().partition("ready after")[2]


def test_samples_of_an_earlier_start_do_not_count_as_the_pace_of_this_one():
    with Progress({"aime24": (200, 1)}, Console(file=open(os.devnull, "w"))) as progress:  # noqa: SIM115
        for problem in range(100):  # in no time
            progress.kept("aime24", str(problem), True)
        progress.begin()
        assert progress.shown()["samples"] == [100, 200]
        assert progress.left_s() is None
        for problem in range(100, 103):
            time.sleep(0.05)
            progress.sampled("aime24", 100)
            progress.verified("aime24", str(problem), True)
        assert 97 * 0.05 <= progress.left_s() < 97 * 5


# What is said in the end


def test_a_base_of_the_same_name_is_told_apart_and_avg_goes_before_pass():
    def made(name: str, samples: int):
        found = [Answer(p, bool(i % 2), 10, False, True) for p in "ab" for i in range(samples)]
        return score(found, name=name, step=0, version=0, resamples=100, seed=0)

    assert _named_apart(made("mine", 4), "mine").name == "mine (base)"
    assert _named_apart(made("theirs", 4), "mine").name == "theirs"
    base, ours = made("base", 4), made("mine", 2)
    lines = table([base, compare(ours, base, resamples=100, seed=0)])
    assert [line[0] for line in lines[1:6]] == ["Avg@2", "Avg@4", "Pass@2", "Pass@4", "Problems ever solved"]
    assert lines[1][1] == "-" and lines[1][3].startswith("+0.0 [-")  # two problems prove nothing


def test_what_an_error_quotes_of_data_cannot_steer_the_terminal(tmp_path, capsys):
    from trd_ray.cli import main

    place = tmp_path / "hostile.jsonl"
    place.write_text(json.dumps({"pro\x1b]0;title\x07\x1b[31mblem": "1+1", "answer": "2"}) + "\n")
    assert main(["evaluate", "miniature:student", str(place), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "has no column 'problem'" in said and "blem" in said
    assert not {c for c in said if not c.isprintable()} - {"\n"}


# Verification in Ray tasks


def test_every_sample_gets_its_own_verdict_whatever_is_grouped_with_it(ray_cluster):
    from trd_ray.config import SamplerConfig

    verify = VerifyConfig(cpus=0.5, max_tasks=2)
    asks = []
    for p in range(5):
        row = {"problem_id": f"p{p}", "problem": "", "answer": str(p), "reference": "", "tests": None}
        question = Question("b", row, [], EvaluationConfig(), verify)
        asks += [Ask(question, i, 0, text=f"\\boxed{{{i}}}") for i in range(7)]
    code = Tests("stdio", ["1\n", "2\n"], ["2\n", "4\n"], "tokens").pack()
    row = {"problem_id": "double", "problem": "", "answer": "", "reference": "", "tests": code}
    programs = {0: "print(2 * int(input()))", 1: "print(2)", 2: "import os; os._exit(0)"}
    question = Question("c", row, [], EvaluationConfig(), verify)
    of_code = [Ask(question, i, 0, text=f"```python\n{program}\n```") for i, program in programs.items()]
    source = "def f(text, problem): return problem.get('completion_ids') == [int(text)]"
    counts = VerifyConfig(function="s.py:f", sources={"s.py": source}, cpus=0.5, max_tasks=2)
    by_ids = Question("d", row | {"problem_id": "ids", "tests": None}, [], EvaluationConfig(), counts)
    with_ids = [Ask(by_ids, i, 0, text=str(i), ids=[i] if i else []) for i in range(3)]
    looks = []
    events = list(
        answers(
            asks + of_code + with_ids,
            pool=None,
            sampler=SamplerConfig(),
            verify=verify,
            while_waiting=lambda: looks.append(time.monotonic()),
        )
    )
    assert all(isinstance(e, Verified) for e in events) and looks
    judged = {e.ask.sample: e.verdict.passed for e in events if e.ask.question is question}
    assert judged == {0: True, 1: False, 2: False}
    assert {e.ask.sample: e.verdict.passed for e in events if e.ask.question is by_ids} == {0: False, 1: True, 2: True}
    events = [e for e in events if e.ask.question not in (question, by_ids)]
    assert sorted((e.ask.question.problem_id, e.ask.sample) for e in events) == [
        (f"p{p}", i) for p in range(5) for i in range(7)
    ]
    assert all(e.verdict.passed == (e.ask.sample == int(e.ask.question.problem["answer"])) for e in events)


# Sampling and verification together


def _sampled(tied, tokens: int, **stated):
    from trd_ray.config import SamplerConfig

    row = {"problem_id": "p", "problem": "", "answer": "1", "reference": "", "tests": None}
    sampling = EvaluationConfig(max_response_tokens=tokens, temperature=0)
    question = Question("b", row, tied.endless_prompts(1, 300)[0], sampling, VerifyConfig(cpus=0.5, max_tasks=2))
    options = {"pool": tied.pool, "sampler": SamplerConfig(max_concurrent=4), "verify": question.verify}
    return answers([Ask(question, i, i) for i in range(20)], **options | {"while_waiting": lambda: None} | stated)


def _client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pool client"]


def test_every_sample_comes_from_an_engine_and_then_gets_its_verdict(tied):
    before = _client_threads()
    events = list(_sampled(tied, 20))
    sampled = [e for e in events if isinstance(e, Sampled)]
    verified = [e for e in events if isinstance(e, Verified)]
    assert sorted(e.ask.sample for e in sampled) == sorted(e.ask.sample for e in verified) == list(range(20))
    expected = tied.greedy(tied.endless_prompts(1, 300)[0], 20)
    assert all(e.generation.ids.tolist() == expected for e in sampled)
    assert _client_threads() == before
    tied.wait(lambda status: status["running"] == 0, 5)


def test_whoever_leaves_the_loop_early_leaves_nothing_under_way(tied):
    before = _client_threads()
    asked = tied.status()["requests"]

    def leave() -> None:
        if tied.status()["running"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(_sampled(tied, 1500, while_waiting=leave))
    status = tied.wait(lambda status: status["running"] == status["waiting"] == 0, 5)
    assert status["requests"] < asked + 20 and _client_threads() == before


def test_samples_that_do_not_come_end_the_loop_with_a_sentence(tied):
    from trd_ray.config import SamplerConfig

    sampler = SamplerConfig(max_concurrent=4, request_timeout_s=1)
    with pytest.raises(TimeoutError, match=r"heard nothing for 1 s \(sampler\.request_timeout_s\) of 5 samples and 0"):
        list(_sampled(tied, 20, sampler=sampler, min_version=tied.version + 1))
