"""Long: every kind of process of a run is killed once, and twenty runs in a row leave nothing. `make test-long`.

The engines' own deaths, from which a run recovers by itself, are in test_run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from runs import (
    NO_EVALUATION,
    REPO,
    SMALL,
    Finished,
    descendants,
    finish,
    on_corpus,
    run,
    start,
    wait_for_checkpoint,
    wait_for_engines,
    wait_for_step,
)
from trd_ray import lineage

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

PATTERNS = {
    "mailbox": "ray::Mailbox",
    "controller": "ray::TrainController",
    "learner": "ray::RayTrainWorker",
    "pool": "ray::Pool",
    "raylet": "raylet/raylet ",
    "gcs": "gcs_server",
}


def small_steps(corpus: Finished, *more: str) -> list[str]:
    return ["miniature_opsd", *on_corpus(corpus), "rollouts_per_step=2", "checkpoint.every_steps=2", *more]


def process_of(pid: int, kind: str) -> psutil.Process:
    if kind == "driver":
        return psutil.Process(pid).children()[0]
    for process in descendants(pid):
        try:
            if PATTERNS[kind] in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"the run has no {kind}")


@pytest.mark.parametrize(
    "kind, code, words",
    [
        ("raylet", 1, ["raylet on this machine has died", "logs/ray.log"]),
        ("gcs", 1, ["control service (GCS)", "logs/ray.log"]),
        ("driver", 128 + signal.SIGKILL, ["was killed (SIGKILL)"]),
    ],
)
def test_whatever_dies_is_one_sentence_nothing_is_left_and_the_same_command_goes_on(
    corpus, tmp_path, kind, code, words
):
    command = small_steps(corpus, "steps=40", "--resume", "auto")
    directory = tmp_path / "run"
    process = start(directory, "train", *command)
    wait_for_checkpoint(process, directory, timeout_s=600)
    if kind == "gcs":  # it is missed after a minute only, by when the run would be over
        process_of(process.pid, "learner").suspend()
    process_of(process.pid, kind).kill()
    ended = finish(process, directory)
    assert ended.code == code, ended.output[-3000:]
    assert ended.left == [] and "Traceback" not in ended.output and "(raylet)" not in ended.output
    last = ended.output.splitlines()[-1]
    for word in [*words, "is kept in", "--resume auto` goes on"]:
        assert word in last, ended.output[-3000:]
    again = run(directory, "train", *command)
    assert again.code == 0 and again.left == [], again.output[-3000:]
    assert [m["step"] for m in again.metrics] == sorted({m["step"] for m in again.metrics})
    assert len({row["row"] for row in again.rows}) == len(again.rows) == 80


@pytest.mark.parametrize(
    "kind, how, words",
    [
        ("learner", "kill", "a learner rank on node"),
        ("mailbox", "kill", "the learner's mailbox on node"),
        ("controller", "kill", "Ray Train's controller on node"),
        ("learner", "suspend", "rank 0 of the learner has not been heard of"),
        ("mailbox", "suspend", "the learner's mailbox has not answered"),
    ],
)
def test_a_learner_that_dies_or_hangs_starts_again_and_ends_with_the_same_weights(
    corpus, whole, tmp_path, kind, how, words
):
    process = start(tmp_path / "run", "train", *small_steps(corpus, "steps=40", "heartbeat_s=20"))
    wait_for_checkpoint(process, tmp_path / "run", timeout_s=600)
    getattr(process_of(process.pid, kind), how)()
    ended = finish(process, tmp_path / "run", timeout_s=900)
    assert ended.code == 0 and ended.left == [], ended.output[-3000:]
    assert words in ended.output and "the learner goes on after" in ended.output, ended.output[-3000:]
    assert [m["loss"] for m in ended.metrics] == [m["loss"] for m in whole.metrics]
    assert len({row["row"] for row in ended.rows}) == len(ended.rows) == 80
    model, state = "checkpoints/step-000040/model/model.safetensors", "checkpoints/step-000040/state.json"
    assert (ended.directory / model).read_bytes() == (whole.directory / model).read_bytes()
    digest = json.loads((ended.directory / state).read_text())["rows_sha256"]
    assert digest == lineage.of_ledger((ended.directory / "rows").glob("*.parquet"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Finished:
    made = run(tmp_path_factory.mktemp("whole") / "run", "train", *small_steps(corpus, "steps=40"))
    assert made.code == 0, made.output[-3000:]
    return made


def test_a_pool_that_dies_goes_on_with_its_engines_and_so_does_the_run(tmp_path):
    directory = tmp_path / "run"
    process = start(directory, "train", "miniature_opsd", *SMALL, *NO_EVALUATION, "steps=16")
    wait_for_step(process, directory, 2)
    engines = wait_for_engines(process, 2)
    process_of(process.pid, "pool").kill()
    while "goes on after the death of its pool" not in (directory / "events.jsonl").read_text():
        assert process.poll() is None, Path(f"{directory}.out").read_text()[-3000:]
        time.sleep(0.1)
    assert set(wait_for_engines(process, 2)) == set(engines)
    ended = finish(process, directory)
    assert ended.code == 0 and ended.left == [], ended.output[-3000:]
    assert len({row["row"] for row in ended.rows}) == len(ended.rows) == 16 * 16


def test_a_second_signal_ends_at_once_and_leaves_nothing(corpus, tmp_path):
    directory = tmp_path / "run"
    process = start(directory, "train", "miniature_opsd", *SMALL, *NO_EVALUATION)
    wait_for_step(process, directory, 1)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    ended = finish(process, directory, timeout_s=60)
    assert ended.code == 130 and ended.left == [], ended.output[-3000:]


def test_twenty_runs_and_comparisons_in_a_row_leave_nothing(corpus, tmp_path):
    small = ["modes.opd=null", "seeds=[0]", "tuning=null", "set.steps=1", "set.rollouts_per_step=4"]
    small += [f"methods.{name}=null" for name in ("clipped_forward_kl", "reverse_kl", "reverse_kl_top_k")]
    small += ["set.evaluation.limit=4", "set.evaluation.samples=1", "set.stream.rows_per_block=4"]
    for number in range(20):
        directory = tmp_path / str(number)
        if number % 5:
            ended = run(directory, "train", *small_steps(corpus, "steps=3"))
        else:
            with open(f"{directory}.out", "w") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "trd_ray.cli", "compare", "miniature", f"directory={directory}", *small],
                    stdout=out, stderr=subprocess.STDOUT, cwd=REPO, start_new_session=True,
                )  # fmt: skip
            ended = finish(process, directory, timeout_s=900)
        assert ended.code == 0 and ended.left == [], (number, ended.left, ended.output[-3000:])
