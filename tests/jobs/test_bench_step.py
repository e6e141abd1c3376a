"""The step benchmark compares like with like, or gives no figures.

TRL's own trainers take the same step; models are a few thousand random parameters.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
import bench_step  # noqa: E402

TINY = "--hidden 32 --layers 1 --vocabulary 60 --rollouts 4 --batch 2 --median-tokens 6 --max-tokens 16 --repeats 1"
STEP = bench_step.Step(1.0, 1.0, 2.0, 10, 0.0, {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])})


def test_trl_takes_the_same_step_and_the_table_says_what_it_costs(tmp_path):
    # By its exit code 0 the script has found losses and gradients equal to ours.
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "bench_step.py", *TINY.split(), "--methods", "ours,distillation"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "TR" in line]
    s, _ = bench_step.settings(TINY.split())
    rollouts = bench_step.rollouts(s)
    # TRL's trainer pads all prompts and all responses of a step to the longest; ours computes no padding.
    longest = max(len(r.prompt_ids) for r in rollouts) + max(len(r.response_ids) for r in rollouts)
    padded = 1 - sum(r.tokens for r in rollouts) / (4 * longest)
    share = {row[0]: row[6] for row in rows if len(row) == 8}
    assert share["TRL DistillationTrainer"] == f"{padded:.0%}"
    assert "| trd_ray learner |" in done.stdout and "| 0% |" in done.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"loss": 1.001}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"gradients": {"w": torch.tensor([1.0, -2.1]), "b": torch.tensor([3.0])}}, "gradients"),
        ({"gradients": {"w": torch.tensor([1.0, -2.0])}}, "'b'"),
    ],
)
def test_methods_that_do_not_take_the_same_step_are_told_apart(change, what):
    assert bench_step.disagreement(STEP, replace(STEP, seconds=2.0), "float32") is None
    assert what in str(bench_step.disagreement(STEP, replace(STEP, **change), "float32"))


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("--rollouts 6 --batch 4", "multiple"),
        ("--methods ours,trl", "'trl'"),
        ("--hidden 0", "at least 1"),
        ("--device tpu", "cuda"),
        ("--sigma nan", "sigma"),
        ("--steps 3", "--steps"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, remedy, capsys):
    assert bench_step.main(arguments.split()) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and remedy in sentence
