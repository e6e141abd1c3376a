"""`trd init` writes a recipe that loads and trains on the data that it was shown, or writes nothing."""

import json
from pathlib import Path

import pytest
import yaml

from trd_ray import config, draft
from trd_ray.cli import main
from trd_ray.problems.load import load_problems

ROW = {"question": "1+{i}?", "final_answer": "{i}", "solution": "so \\boxed{{i}}"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(name: str, count: int = 20, **row: object) -> str:
    rows = [{k: v.replace("{i}", str(i)) if isinstance(v, str) else v for k, v in row.items()} for i in range(count)]
    Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return name


def refused(capsys, *arguments: str) -> str:
    before = set(Path.cwd().rglob("*"))
    assert main(["init", *arguments]) == 2
    assert set(Path.cwd().rglob("*")) == before, "something was written"
    said = capsys.readouterr().err.strip()
    assert said.startswith("trd: ") and "\n" not in said
    return said


def test_the_columns_of_the_file_are_recognised_and_the_recipe_reads_the_problems(capsys):
    problems("p.jsonl", **ROW)
    problems("h.jsonl", **ROW)
    assert main(["init", "--model", "miniature:student", "--data", "p.jsonl", "--held-out", "h.jsonl"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == ["wrote my.yaml: 20 problems", "next: trd train my.yaml --dry-run"]
    recipe = config.load("my.yaml")
    assert recipe.data.columns == {"problem": "question", "answer": "final_answer", "reference": "solution"}
    assert recipe.data.columns == recipe.evaluation.columns
    assert load_problems(recipe.data).table.num_rows == load_problems(recipe.evaluation).table.num_rows == 20
    assert (recipe.name, recipe.teacher.mode, recipe.student.path) == ("my", "opsd", "miniature:student")


def test_a_written_recipe_passes_the_dry_run_on_this_machine_as_it_stands(capsys):
    problems("p.jsonl", **ROW)
    problems("h.jsonl", **(ROW | {"question": "2+{i}?"}))
    assert main(["init", "--model", "smollm2", "--data", "p.jsonl", "--held-out", "h.jsonl"]) == 0
    capsys.readouterr()
    assert main(["train", "my.yaml", "--dry-run"]) in (0, 2)
    said = capsys.readouterr()
    assert "20 problems, 10 steps of 2 rollouts" in said.out and said.err == ""
    reasons = said.out.partition("fits: ")[2]
    assert reasons.startswith("yes") or "memory" in reasons, "all but what other programs take of the memory fits"


def test_every_key_is_explained(capsys):
    problems("p.jsonl", **ROW)
    assert main(["init", "--data", "p.jsonl", "--teacher", "Qwen/Qwen3-8B", "--held-out", "aime24"]) == 0
    for line in Path("my.yaml").read_text().splitlines():
        assert not line or "  # " in line or line.startswith("#"), line


def test_a_teacher_means_opd_and_a_thinking_mode_is_stated():
    problems("p.jsonl", **ROW)
    assert main(["init", "--data", "p.jsonl", "--teacher", "Qwen/Qwen3-8B", "--held-out", "aime24"]) == 0
    recipe = config.load("my.yaml")
    assert (recipe.teacher.mode, recipe.teacher.path) == ("opd", "Qwen/Qwen3-8B")
    assert recipe.student.chat_template_kwargs == {"enable_thinking": True}
    assert recipe.teacher.chat_template_kwargs == {"enable_thinking": False}
    assert recipe.evaluation.path == "aime24"


def test_without_data_it_says_what_a_row_holds_and_what_comes_first(capsys):
    assert main(["init", "first try.yaml"]) == 0
    said, text = capsys.readouterr().out, Path("first try.yaml").read_text()
    assert "put your problems into problems.jsonl" in said and "trd train 'first try.yaml' --dry-run" in said
    assert '{"problem": "1+1?", "answer": "2", "reference"' in text
    assert config.load("first try.yaml").evaluation.path is None


def test_problems_with_tests_are_code():
    tests = {"inputs": ["1\n"], "outputs": ["1\n"]}
    problems("p.jsonl", question="echo {i}", input_output=tests, solution="print(input())")
    assert main(["init", "--model", "miniature:student", "--data", "p.jsonl"]) == 0
    recipe = config.load("my.yaml")
    assert recipe.task == "code"
    assert recipe.data.columns == {"problem": "question", "reference": "solution", "tests": "input_output"}
    assert load_problems(recipe.data).table["tests"].null_count == 0


def test_verl_s_columns_and_conversations_are_recognised():
    asked = [{"role": "user", "content": "1+1?"}]
    verl = {"prompt": asked, "reward_model": {"ground_truth": "2"}, "solution": "It is 2."}
    problems("p.jsonl", **verl)
    talk = [*asked, {"role": "assistant", "content": "It is 2."}]
    problems("h.jsonl", messages=talk, answer="2")
    assert main(["init", "--model", "miniature:student", "--data", "p.jsonl", "--held-out", "h.jsonl"]) == 0
    recipe = config.load("my.yaml")
    mapped = {"problem": "prompt", "answer": "reward_model.ground_truth", "reference": "solution"}
    assert recipe.data.columns == mapped and recipe.evaluation.columns == {"problem": "messages"}
    assert load_problems(recipe.data).table["reference"].to_pylist() == ["It is 2."] * 20
    assert load_problems(recipe.evaluation).table["answer"].to_pylist() == ["2"] * 20


def test_problems_without_a_reference_are_left_out_where_the_reference_teaches():
    file = problems("p.jsonl", **ROW)
    with open(file, "a") as more:
        more.write(json.dumps({"question": "q", "final_answer": "1", "solution": ""}) + "\n")
    assert main(["init", "--model", "miniature:student", "--data", file]) == 0
    assert config.load("my.yaml").data.without_reference == "drop"
    assert "1 of 21 problems have no reference" in Path("my.yaml").read_text()


@pytest.mark.parametrize("name", ["a # b.jsonl", "{x}: y.jsonl", "null.jsonl", 'q"uote.jsonl', "ü.jsonl", "*.jsonl"])
def test_a_name_that_yaml_reads_otherwise_is_quoted(name):
    column = "my: column # 1"
    problems(name, **{column: "1+{i}?", "answer": "2", "reference": "r"})
    arguments = ["--model", "miniature:student", "--data", name, "--held-out", name, "--column", f"problem={column}"]
    assert main(["init", *arguments]) == 0
    recipe = config.load("my.yaml")
    assert (recipe.data.path, recipe.evaluation.path) == (name, name)
    assert recipe.data.columns["problem"] == recipe.evaluation.columns["problem"] == column


def test_what_cannot_work_is_refused_and_nothing_is_written(capsys):
    problems("p.jsonl", **ROW)
    problems("odd.jsonl", foo="1", bar="2")
    problems("bare.jsonl", problem="1+{i}", answer="2")
    Path("cut.jsonl").write_text('{"problem": "1')
    Path("there.yaml").write_text("x: 1")
    model = ("--model", "miniature:student")
    assert "there.yaml is there already" in refused(capsys, "there.yaml", *model)
    assert "no folder no/such" in refused(capsys, "no/such/my.yaml", *model)
    assert "control character" in refused(capsys, "a\nb.yaml", *model)
    assert "add --teacher" in refused(capsys, *model, "--mode", "opd")
    assert "leave --teacher out" in refused(capsys, *model, "--mode", "opsd", "--teacher", "miniature:teacher")
    said = refused(capsys, *model, "--data", "odd.jsonl")
    assert "has the columns foo, bar" in said and "--column problem=NAME" in said
    assert "--column answer=NAME" in refused(capsys, *model, "--data", "odd.jsonl", "--column", "problem=foo")
    assert "no such column, only foo, bar" in refused(capsys, *model, "--data", "odd.jsonl", "--column", "problem=x")
    assert "our columns are problem" in refused(capsys, *model, "--data", "p.jsonl", "--column", "zzz=x")
    assert "--mode opd --teacher" in refused(capsys, *model, "--data", "bare.jsonl")
    assert "cut off" in refused(capsys, *model, "--data", "cut.jsonl")
    assert "there is no data file no.jsonl" in refused(capsys, *model, "--data", "no.jsonl")
    assert Path("there.yaml").read_text() == "x: 1"


def test_a_misspelt_benchmark_is_refused_with_the_list(capsys):
    problems("p.jsonl", **ROW)
    assert main(["init", "--model", "miniature:student", "--data", "p.jsonl", "--held-out", "aime42"]) == 2
    assert "did you mean aime2" in capsys.readouterr().err
    assert not Path("my.yaml").exists()


@pytest.mark.parametrize("gpu, cores", [(True, 64), (False, 2), (False, 16)])
def test_lengths_fit_the_model_s_context_on_every_machine(monkeypatch, gpu, cores):
    monkeypatch.setattr(draft, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(draft.os, "sched_getaffinity", lambda _: set(range(cores)))
    for model, context in (("smollm2", 8192), ("Qwen/Qwen3-1.7B", 32768)):
        wish = draft.Wish(Path("x.yaml"), model, None, "opsd", None, None, {})
        recipe = config.from_tree(yaml.safe_load(draft.draft(wish, draft.Problems("p", {}), draft.Problems("h", {}))))
        s, r, e = recipe.sampler, recipe.refiner, recipe.evaluation
        assert r.max_prompt_tokens + r.max_response_tokens <= context
        assert r.max_prompt_tokens >= s.max_response_tokens + 1024, "the attempt fits beside a problem"
        assert e.max_response_tokens == s.max_response_tokens == r.max_response_tokens
        actors = [p.cpus for p in (s, r, recipe.learner, recipe.verify)]
        assert gpu or sum(actors) <= cores
