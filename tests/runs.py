"""Whole runs as a user starts them: a subprocess of the command line, and what it left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from trd_ray import config, miniature
from trd_ray.rows import RowFiles

# A little of everything: 5 steps of 16 rollouts, one block a step. Long enough to be interrupted in the middle.
REPO = Path(__file__).parent.parent
STEPS = 5
ROWS = STEPS * 16
SMALL = [
    f"steps={STEPS}",
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
    left: list[psutil.Process]  # processes of the run that outlived it: Ray's, the engines', the verifiers'

    @property
    def rows(self) -> list[dict]:
        return RowFiles(sorted((self.directory / "rows").glob("step-*.parquet"))).to_table().to_pylist()

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]


def on_corpus(of: Finished) -> list[str]:
    """Training on the rows of a finished run, for which no engine starts."""
    return ["data.source=corpus", f"data.path={of.directory}", *NO_EVALUATION]


def start(directory: Path | None, command: str, recipe: str, *arguments: str, cwd: Path | None = None):
    """`trd COMMAND RECIPE ...` in a session of its own, its output in a file beside the run directory.

    Without `directory` it is the recipe's own, below `cwd`, and the output is in cwd/run.out.
    """
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), environment.get("PYTHONPATH")]))
    place = [f"run_dir={directory}"] if directory else []
    with open(f"{directory}.out" if directory else f"{cwd}/run.out", "a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "trd_ray.cli", command, recipe, *place, *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )


def descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def engines(pid: int) -> list[psutil.Process]:
    """The vLLM engine processes below a process."""
    found = []
    for process in descendants(pid):
        try:
            if "EngineCore" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_engines(process: subprocess.Popen, count: int, timeout_s: float = 60) -> list[psutil.Process]:
    """All engines of a run, once there are so many; a listing of processes that start and end can miss one."""
    deadline = time.monotonic() + timeout_s
    seen: dict[int, list[psutil.Process]] = {}  # by how many there were
    while len(found := engines(process.pid)) != count:
        seen[len(found)] = found
        assert process.poll() is None and time.monotonic() < deadline, f"expected {count} engines, found {seen}"
        time.sleep(0.2)
    return found


def finish(process: subprocess.Popen, directory: Path, timeout_s: float = 400, output: Path | None = None) -> Finished:
    """Wait for a run, remembering every process it has; one that ran on would lose its parent, not its identity."""
    deadline, seen = time.monotonic() + timeout_s, set()
    while process.poll() is None and time.monotonic() < deadline:
        seen |= descendants(process.pid)
        time.sleep(0.2)
    ended = process.poll() is not None
    left = [p for p in psutil.wait_procs(seen, timeout=60)[1] if _lives(p)]
    text = (output or Path(f"{directory}.out")).read_text()
    if not ended:
        for p in [psutil.Process(process.pid), *left]:
            p.kill()
        raise AssertionError(f"the run did not end:\n{text[-3000:]}")
    return Finished(process.returncode, text, directory, left)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run(directory: Path, command: str, recipe: str, *arguments: str, timeout_s: float = 400) -> Finished:
    return finish(start(directory, command, recipe, *arguments), directory, timeout_s)


def wait_for_step(
    process: subprocess.Popen, directory: Path, steps: int, timeout_s: float = 200, output: Path | None = None
) -> None:
    """Until so many steps are recorded."""
    deadline = time.monotonic() + timeout_s
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert process.poll() is None, (output or Path(f"{directory}.out")).read_text()[-3000:]
        assert time.monotonic() < deadline, f"step {steps} was not recorded within {timeout_s} s"
        time.sleep(0.2)


def wait_for_checkpoint(process: subprocess.Popen, directory: Path, timeout_s: float = 200) -> None:
    """Until a checkpoint is complete, which is some steps after the one that it holds."""
    deadline = time.monotonic() + timeout_s
    while not list(directory.glob("checkpoints/step-*/state.json")):
        assert process.poll() is None, Path(f"{directory}.out").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no checkpoint was written within {timeout_s} s"
        time.sleep(0.05)


def held_out(place: Path, n: int = 20, first: int = 0) -> Path:
    """Problems of the miniature test set, as a file of one's own."""
    rows = miniature.problems("test")[first : first + n]
    keys = ("problem_id", "problem", "answer", "reference")
    place.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))
    return place


def a_run(folder: Path, *overrides: str) -> Path:
    """The part of a run's directory that an evaluation reads, with checkpoints of 5 and 10 steps."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(config.dump(config.load("miniature_opd", [*overrides, f"run_dir={folder}"])))
    for steps in (5, 10):
        checkpoint = folder / "checkpoints" / f"step-{steps:06d}"
        shutil.copytree(miniature.model_path("student"), checkpoint / "model")
        (checkpoint / "state.json").write_text(json.dumps({"steps": steps}))
    return folder
