"""Whole runs as a user starts them: a subprocess of the command line, and what it left behind."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.dataset as ds

# One small step of everything: 3 steps of 16 rollouts, one block a step.
SMALL = [
    "steps=3",
    "rollouts_per_step=16",
    "stream.rows_per_block=16",
    "checkpoint.every_steps=2",
    "evaluation.limit=10",
    "evaluation.samples=4",
    "evaluation.bootstrap=200",
]
NO_EVALUATION = ["evaluation.path=null"]


@dataclass
class Finished:
    code: int
    output: str
    directory: Path

    @property
    def rows(self) -> list[dict]:
        files = sorted((self.directory / "rows").glob("step-*.parquet"))
        return ds.dataset([str(f) for f in files], format="parquet").to_table().to_pylist()

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]


def start(directory: Path, command: str, recipe: str, *arguments: str) -> subprocess.Popen:
    """`trd COMMAND RECIPE ...` in a session of its own, its output in a file beside the run directory."""
    environment = os.environ | {
        "TRD_TEST_RUN": str(directory)
    }  # inherited by every process of the run: see `left_over`
    environment.pop("RAY_ADDRESS", None)
    with open(f"{directory}.out", "a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "trd_ray.cli", command, recipe, f"run_dir={directory}", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, directory: Path, timeout_s: float = 400) -> Finished:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        for left in left_over(directory):
            left.kill()
        raise AssertionError(f"the run did not end:\n{Path(f'{directory}.out').read_text()[-3000:]}") from None
    return Finished(process.returncode, Path(f"{directory}.out").read_text(), directory)


def run(directory: Path, command: str, recipe: str, *arguments: str, timeout_s: float = 400) -> Finished:
    return finish(start(directory, command, recipe, *arguments), directory, timeout_s)


def wait_for_step(process: subprocess.Popen, directory: Path, steps: int, timeout_s: float = 200) -> None:
    """Until so many steps are recorded."""
    deadline = time.monotonic() + timeout_s
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert process.poll() is None, Path(f"{directory}.out").read_text()[-3000:]
        assert time.monotonic() < deadline, f"step {steps} was not recorded within {timeout_s} s"
        time.sleep(0.2)


def left_over(directory: Path) -> list[psutil.Process]:
    """Processes of a run that still live: Ray's, the engines', the verifiers'."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TRD_TEST_RUN") == str(directory) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
