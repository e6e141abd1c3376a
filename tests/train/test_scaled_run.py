"""A whole run whose pools get another engine each, and lose it again, while it trains."""

import json
import subprocess
import sys
import time

import pytest

from runs import NO_EVALUATION, REPO, SMALL, finish, start, wait_for_step

WAIT_S = 240


def said(directory) -> list[str]:
    events = directory / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    return [event.get("said", "") for event in map(json.loads, lines)]


def wait_until_said(process, directory, text: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while text not in said(directory):
        assert process.poll() is None and time.monotonic() < deadline, f"{text!r} is not among {said(directory)}"
        time.sleep(0.2)


def ask(*arguments: str) -> str:
    command = [sys.executable, "-m", "trd_ray.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, cwd=REPO)
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.long
def test_pools_grow_and_shrink_in_a_run_which_samples_every_row_once(tmp_path):
    directory = tmp_path / "run"
    small = [f"{pool}.cpus=0.1" for pool in ("sampler", "refiner")]
    process = start(directory, "train", "miniature_opsd", *SMALL, *NO_EVALUATION, *small, "steps=10000")
    wait_for_step(process, directory, 1, timeout_s=WAIT_S)
    assert "refiner 1 -> 2, sampler 1 -> 2" in ask("scale", str(directory), "refiner=2", "sampler=2")
    wait_until_said(process, directory, "refiner and sampler have 2 engines and 2 engines now")
    served = len((directory / "metrics.jsonl").read_text().splitlines())
    wait_for_step(process, directory, served + 3, timeout_s=WAIT_S)
    assert "refiner 2 -> 1" in ask("scale", str(directory), "refiner=1", "sampler=1")
    wait_until_said(process, directory, "refiner and sampler have 1 engine and 1 engine now")
    served = len((directory / "metrics.jsonl").read_text().splitlines())
    wait_for_step(process, directory, served + 2, timeout_s=WAIT_S)
    ask("stop", str(directory))
    done = finish(process, directory)
    assert not done.left and "Traceback" not in done.output
    steps = [m["step"] for m in done.metrics]
    assert steps == list(range(1, len(steps) + 1))
    rows = done.rows
    assert [row["row"] for row in rows] == list(range(16 * len(steps)))
    assert all(row["y_o"]["version"] == row["step"] - 1 for row in rows)
    used = {(y, row[y]["engine"]) for row in rows for y in ("y_o", "y_r")}
    assert {("y_o", "sampler-1"), ("y_r", "refiner-1")} <= used
    kept = json.loads((directory / "scale.json").read_text())
    assert {name: pool["engines"] for name, pool in kept.items()} == {"sampler": 1, "refiner": 1}
