"""Whole runs with a judge: engines of its own, which verifier tasks ask, and which are scaled like the others."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from judges import one_minded
from runs import NO_EVALUATION, finish, run, start, wait_for_engines, wait_for_step
from trd_ray import models
from trd_ray.config import JudgeConfig, recipe_tree
from trd_ray.steer import command
from trd_ray.verify.judge.judge_prompt import JudgePrompts

pytestmark = pytest.mark.timeout(900)

STEPS, ROWS = 2, 8
SILENT: dict[str, Any] = {  # the miniature's student writes digits, and no verdict
    "path": "miniature:student", "prompt": "{problem}{response}", "max_response_tokens": 16, "tries": 2,
}  # fmt: skip


def write(folder: Path, verify: dict[str, Any], judge: dict[str, Any]) -> str:
    tree = recipe_tree("miniature_opsd")
    tree["verify"] = tree.get("verify", {}) | verify
    tree["prompts"] = tree.get("prompts", {}) | {"task": "math"}
    tree["judge"] = {"cpus": 0.3, "extra": {"enforce_eager": True}, "max_concurrent": 16} | judge
    tree |= {"steps": STEPS, "rollouts_per_step": ROWS}
    for group in ("sampler", "refiner", "learner"):
        tree[group] |= {"cpus": 0.3}
    file = folder / "judged.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(file)


def test_the_model_that_stands_for_a_judge_says_the_same_whatever_it_reads(tmp_path):
    path = str(one_minded(tmp_path / "kind"))
    tokenizer = models.tokenizer(models.resolve(path))
    prompts = JudgePrompts(JudgeConfig(path=path, max_response_tokens=16), tokenizer, models.facts(path).max_positions)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    for text in ("It is 4.", "Verdict: fail<|end|>"):
        row = {"problem_id": "p", "problem": "2+2", "answer": "4", "reference": ""}
        asked = torch.tensor([prompts.of(row, text).ids])
        written = model.generate(asked, max_new_tokens=16, do_sample=False)[0, asked.shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == "Verdict: pass" and len(written) == 2


@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_judged_by_a_model_on_engines_of_its_own(tmp_path):
    """The judge passes everything, which mathematics would not: so what is recorded is the judge's word."""
    recipe = write(tmp_path, {"function": "judge"}, {"path": str(one_minded(tmp_path / "kind"))})
    done = run(tmp_path / "run", "train", recipe, *NO_EVALUATION)
    assert done.code == 0, done.output[-3000:]
    assert done.left == [] and len(done.rows) == STEPS * ROWS
    for row in done.rows:
        for y in ("y_o", "y_r"):
            assert row[y]["passed"] and row[y]["score"] == 1.0 and not row[y]["detail"]
    assert all({"queue/judge", "queue/sampler"} <= metrics.keys() for metrics in done.metrics)
    assert (done.directory / "logs" / "judge-0.log").stat().st_size > 0
    assert "judge" in (done.directory / "summary.md").read_text()
    assert "the judge:" in done.output


@pytest.mark.slow
@pytest.mark.long
def test_a_judge_that_does_not_count_and_says_nothing_costs_no_row(tmp_path):
    """Every row was asked about, and no verdict came: mathematics alone decides, and the detail says both."""
    functions = {"maths": {"function": "math"}, "opinion": {"function": "judge", "weight": 0}}
    done = run(tmp_path / "run", "train", write(tmp_path, {"functions": functions}, SILENT), *NO_EVALUATION)
    assert done.code == 0, done.output[-3000:]
    assert len(done.rows) == STEPS * ROWS and 0 < sum(row["y_o"]["passed"] for row in done.rows) < STEPS * ROWS
    for row in done.rows:
        assert "opinion not judged (the judge gave no verdict when asked 2 times" in row["y_o"]["detail"]
        assert row["y_o"]["score"] in (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.long
def test_a_judge_that_gives_no_verdicts_ends_the_run_with_a_sentence(tmp_path):
    recipe = write(tmp_path, {"function": "judge"}, SILENT)
    done = run(tmp_path / "run", "train", recipe, *NO_EVALUATION, "data.max_bad_rows=4")
    assert done.code == 1 and "Traceback" not in done.output
    assert "data.max_bad_rows" in done.output and "the judge gave no verdict" in done.output


@pytest.mark.slow
@pytest.mark.long
def test_a_judge_s_pool_grows_while_the_run_goes_on_and_its_process_may_die(tmp_path):
    recipe = write(tmp_path, {"function": "judge"}, {"path": str(one_minded(tmp_path / "kind")), "cpus": 0.1})
    directory = tmp_path / "run"
    process = start(directory, "train", recipe, *NO_EVALUATION, "cluster.memory_gib=64", "steps=10000", "sampler.n=8")
    wait_for_step(process, directory, 1, timeout_s=300)
    assert command.ask(str(directory), "scale", {"judge": 2}, None, 60) == 0
    wait_for_engines(process, 4, timeout_s=300)
    deadline = time.monotonic() + 300
    while (pool := judges(directory))["up"] < 2 or pool["restarting"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    os.kill(pool["pid"], signal.SIGKILL)  # the tasks find the next process, and that one its engines
    while judges(directory)["pid"] == pool["pid"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    wait_for_step(process, directory, judges(directory)["step"] + 3, timeout_s=300)
    assert command.ask(str(directory), "stop", {}, None, 60) == 0
    done = finish(process, directory)
    assert not done.left and "Traceback" not in done.output and all(row["y_o"]["passed"] for row in done.rows)
    kept = json.loads((directory / "scale.json").read_text())
    assert {name: pool["engines"] for name, pool in kept.items()} == {"sampler": 1, "refiner": 1, "judge": 2}


def judges(directory: Path) -> dict[str, Any]:
    """The judge's pool as the run last told of it, and the step that the run is at."""
    status = json.loads((directory / "status.json").read_text())
    return status["pools"]["judge"] | {"step": status["shown"]["steps"][0]}


@pytest.mark.slow
@pytest.mark.long
def test_an_evaluation_starts_the_judge_and_another_judge_needs_no_new_samples(tmp_path):
    rows = [{"problem": f"{i}+2", "answer": str(i + 2)} for i in range(4)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write(tmp_path, {"function": "judge"}, {"path": str(one_minded(tmp_path / "kind"))})
    more = [
        f"evaluation.path={own}",
        "evaluation.samples=2",
        "evaluation.bootstrap=100",
    ]
    directory = tmp_path / "scored"
    done = run(directory, "evaluate", recipe, *more)
    assert done.code == 0, done.output[-3000:]
    scored = json.loads((directory / "evaluation" / "own.json").read_text())
    assert all(all(passed) for passed in scored["per_problem"].values())
    samples = (directory / "evaluation" / "own.jsonl").read_text().count('"kind": "sample"')
    stern = one_minded(tmp_path / "stern", "Verdict: fail")
    done = run(directory, "evaluate", recipe, *more, f"judge.path={stern}")
    assert done.code == 0, done.output[-3000:]
    scored = json.loads((directory / "evaluation" / "own.json").read_text())
    assert not any(any(passed) for passed in scored["per_problem"].values())
    assert (directory / "evaluation" / "own.jsonl").read_text().count('"kind": "sample"') == samples == 8
