"""The whole-run benchmark: both sides are given the same, what is told of them, and what a user may get wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trd_ray import models
from trd_ray.config import from_tree
from trd_ray.problems.load import load_problems
from trd_ray.problems.order import Order
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.views import load_views

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import bench_loop  # noqa: E402
from loop_bench import told  # noqa: E402
from loop_bench.memory import Peak  # noqa: E402
from loop_bench.parity import prompts, trl_arguments  # noqa: E402

PART = told.Part(start_s=60.0, steps_s=[2.0, 2.0], whole_s=70.0, samples=128, tokens=5000, peak_mib=900.0)


def recipe(tmp_path, *overrides, side="ours"):
    return from_tree(bench_loop.run_tree(side, 3, tmp_path, 5, overrides))


def test_trl_meets_the_problems_of_our_run_in_its_order_and_in_its_words(tmp_path):
    ours = recipe(tmp_path, "steps=2")
    asked = prompts(ours)
    assert len(asked) == 2 * ours.rollouts_per_step
    table = load_problems(ours.data, ours.verify).table
    order = Order(len(table), ours.seed, ours.rollouts_per_step, steps=2)
    met = [table["problem"][row["problem_number"]].as_py() for row in order.rows(0, len(asked))]
    student = models.resolve(ours.student.path)
    [views] = load_views(ours, student, models.resolve(ours.teacher.path)).values()
    tokenizer = models.tokenizer(student)
    for problem, conversation in list(zip(met, asked, strict=True))[:5]:
        ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == views.student(problem)


def test_trl_has_our_batch_optimizer_and_schedule(tmp_path):
    arguments = trl_arguments(recipe(tmp_path, "learner.lr=3e-4", "loss.divergence=reverse_kl"), tmp_path, 5, False)
    assert (arguments["per_device_train_batch_size"], arguments["max_steps"]) == (16, 100)
    assert (arguments["learning_rate"], arguments["beta"], arguments["save_steps"]) == (3e-4, 1.0, 20)
    assert (arguments["warmup_steps"], arguments["max_completion_length"]) == (10, 128)
    pytest.importorskip("trl")
    from trl.trainer.distillation_config import DistillationConfig

    made = DistillationConfig(**arguments)
    assert not made.bf16 and not made.gradient_checkpointing and made.adam_beta2 == 0.95


def test_our_sides_differ_in_what_they_train_on_or_how_far_ahead_they_sample_alone(tmp_path):
    plain, ahead, trd = (recipe(tmp_path, side=side) for side in ("ours", "ours-ahead", "ours-trd"))
    stream = ahead.stream.model_copy(update={"max_staleness": 0})
    assert ahead.stream.max_staleness == 1 and (stream, ahead.train) == (plain.stream, plain.train)
    assert (plain.train.trajectory, plain.teacher.view) == ("y_o", "vanilla")
    assert (trd.train.trajectory, trd.teacher.view) == ("y_r", "refine")
    assert plain.learner == trd.learner and plain.data == trd.data and plain.steps == trd.steps


def passes(share: float, seed: int) -> dict[str, dict[str, list[bool]]]:
    rng = np.random.default_rng(seed)
    return {step: {f"p{i}": list(map(bool, rng.random(8) < share)) for i in range(100)} for step in ("0", "5")}


@pytest.fixture
def lines():
    slow = replace(PART, steps_s=[8.0, 8.0], start_s=9.0)
    parts = {told.OURS: [PART] * 2, told.TRL: [slow] * 2, told.OURS_TRD: [replace(PART, tokens=9000)]}
    scores = {
        told.OURS: [passes(0.8, 1), passes(0.8, 2)],
        told.TRL: [passes(0.5, 3), passes(0.5, 4)],
        told.OURS_TRD: [passes(0.8, 5)],
    }
    return told.lines(parts, scores)


def test_the_table_has_ratios_of_the_steps_alone_and_paired_differences(lines):
    text = told.table(lines, {told.TRL_VLLM: "exit code 1: no such device"}, 8)
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in text.splitlines()}
    ours, theirs = rows[told.SIDES[told.OURS]], rows[told.SIDES[told.TRL]]
    assert ours[1] == "1.00x" and theirs[1] == "4.00x" and ours[0].startswith("32.0")
    assert theirs[8].startswith("+") and ours[8] == ""
    assert rows[told.SIDES[told.TRL_VLLM]][0] == "failed: exit code 1: no such device"
    assert "| 0 | 5 |" in told.course(lines, 8)


def test_the_aims_are_judged_against_the_quickest_of_trls_ways(lines):
    assert "4.00x" in told.verdict(lines) and "holds" in told.verdict(lines) and "is better" in told.verdict(lines)
    [ours, trd, theirs] = lines
    quick = replace(theirs, side=told.TRL_VLLM, parts=[replace(PART, steps_s=[1.0, 1.0])])
    assert "0.50x" in told.verdict([ours, trd, quick, theirs]) and "is missed" in told.verdict([ours, quick, theirs])
    assert "run both" in told.verdict([ours, trd])
    ahead = replace(trd, side=told.OURS_AHEAD, parts=[replace(PART, steps_s=[1.6, 1.6])])
    assert "a step ahead: 5.00x" in told.verdict([ours, ahead, theirs]) and "ahead" not in told.verdict(lines)


def test_our_part_is_read_from_the_files_of_the_run(tmp_path):
    run = tmp_path / "run"
    (run / "rows").mkdir(parents=True)
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    y = {"ids": [1, 2, 3], "text": "", "finish": "stop", "passed": True, "score": 1.0, "extracted": "", "detail": ""}
    for step in (1, 2):
        rows = [fixed | {"row": 2 * step + i, "step": step - 1, "y_o": y, "y_r": y} for i in range(2)]
        RunDirectory(run).write_rows(step, to_table(rows))
    lines = [{"step": n, "rollouts": 2, "seconds/step": 2.0 + n, "time_s": 1010.0 + 5 * n} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = bench_loop.of_ours(tmp_path, launched=1000.0, whole_s=30.0, peak_mib=5.0)
    assert part == told.Part(12.0, [3.0, 4.0], 30.0, 4, 24, 5.0)


def test_a_checkpoint_of_trl_belongs_to_the_step_that_its_updates_make(tmp_path):
    for update in (20, 100, 40):
        (tmp_path / f"checkpoint-{update}").mkdir()
    assert list(bench_loop.checkpoints("trl", tmp_path, 4)) == ["5", "10", "25"]


def test_memory_counts_the_processes_below():
    below = "import time; held = bytearray(200 * 2**20); time.sleep(4)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {below!r}])"
    process = subprocess.Popen([sys.executable, "-c", code])
    with Peak(process.pid) as peak:
        process.wait()
    assert 190 < peak.mib < 400


def test_a_side_that_fails_says_why_and_nothing_is_told_of_none(tmp_path, capsys, monkeypatch):
    broken = [sys.executable, "-c", "print('no engine | here'); raise SystemExit(3)"]
    monkeypatch.setattr(bench_loop, "command", lambda *_: broken)
    assert bench_loop.main(["--directory", str(tmp_path), "--seeds", "2", "--sides", "ours"]) == 2
    told = capsys.readouterr().err
    assert told.count("exit code 3: no engine / here") == 1 and "no side could be run" in told
    assert not (tmp_path / "ours-1").exists()  # what fails once is not tried with every seed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sides", "ours,verl"], "there is no side 'verl'"),
        (["--every", "4"], "--every 4 does not divide the 25 steps"),
        (["teacher.mode=opsd", "teacher.path="], "TRL's trainer has no such run: it needs teacher.mode=opd"),
        (["stream.max_staleness=1"], "it needs stream.max_staleness=0"),
        (["learner.updates_per_step=3"], "a multiple of learner.updates_per_step"),
        (["loss.top_k=4"], "loss.top_k, token_clip and vocab_clip empty"),
        (["lr=3"], "unknown key lr"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_anything_starts(options, sentence, tmp_path, capsys):
    assert bench_loop.main(["--directory", str(tmp_path / "D"), *options]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and len(told.splitlines()) == 1 and not (tmp_path / "D").exists()


def test_a_finished_part_of_another_recipe_is_refused(tmp_path, capsys, monkeypatch):
    tree = bench_loop.run_tree("ours", 0, tmp_path, 5)
    (tmp_path / "ours-0").mkdir()
    (tmp_path / "ours-0" / "part.json").write_text("{}")
    (tmp_path / "ours-0" / "recipe.yaml").write_text(json.dumps(tree))
    asked = ["--directory", str(tmp_path), "--seeds", "1", "--sides", "ours"]
    assert bench_loop.settings(asked)[0].seeds == 1
    assert bench_loop.main([*asked, "learner.lr=1e-3"]) == 2
    assert "a part with other overrides" in capsys.readouterr().err


@pytest.mark.long
def test_a_whole_run_of_ours_is_set_beside_one_of_trl(tmp_path):
    pytest.importorskip("trl")
    asked = ["--directory", str(tmp_path), "--seeds", "1", "--sides", "ours,ours-trd,trl", "--every", "1"]
    sizes = ["steps=2", "rollouts_per_step=16", "evaluation.limit=10", "cluster.memory_gib=64"]
    assert bench_loop.main([*asked, "--samples", "2", *sizes]) == 0
    lines = {line["side"]: line for line in json.loads((tmp_path / "results.json").read_text())["lines"]}
    for line in lines.values():
        [part] = line["parts"]
        assert part["samples"] == 32 and set(line["by_step"]) == {"0", "1", "2"}
        assert part["start_s"] + sum(part["steps_s"]) < part["whole_s"] and part["peak_mib"] > 300
    assert lines["ours-trd"]["parts"][0]["tokens"] > 1.5 * lines["ours"]["parts"][0]["tokens"]  # y_r too
    bases = [line["by_step"]["0"]["value"] for line in lines.values()]
    assert len(set(bases)) == 1  # one program scores all, with the same seed


@pytest.mark.long
def test_trl_trains_the_miniature_student_and_is_scored_along_the_way(tmp_path):
    pytest.importorskip("trl")
    asked = ["--directory", str(tmp_path), "--seeds", "1", "--sides", "trl", "--every", "1", "--samples", "2"]
    assert bench_loop.main([*asked, "steps=2", "rollouts_per_step=16", "evaluation.limit=10"]) == 0
    [line] = json.loads((tmp_path / "results.json").read_text())["lines"]
    assert line["parts"][0]["samples"] == 32 and set(line["by_step"]) == {"0", "1", "2"}
    assert 0 < sum(line["parts"][0]["steps_s"]) < line["parts"][0]["whole_s"] and line["parts"][0]["tokens"] > 32
