"""Trackers that are each bad in one way, and one that writes down what it is told; they run in their own processes."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trd_ray.trackers.kept_run import KeptRun


class Notes:
    """Writes what it is told into notes.jsonl of the run directory."""

    def __init__(self) -> None:
        self.file: Path | None = None

    def note(self, *what: Any) -> None:
        assert self.file
        with open(self.file, "a") as file:
            file.write(json.dumps(what) + "\n")

    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        self.file = Path(facts["directory"]) / "notes.jsonl"
        found = kept.find("here")
        if not found:
            kept.begin("an id", "here")
        self.note("begin", facts["name"], facts["recipe"]["seed"], found, kept.id, kept.step)
        return "in notes.jsonl"

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.note("step", step, metrics)

    def rows(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        self.note("rows", step, columns, rows)

    def end(self, how: str, said: str, summary: dict[str, float], text: str, files: list[Path]) -> None:
        self.note("end", how, said, summary, text, [file.name for file in files])


class Sleeps(Notes):
    def step(self, step: int, metrics: dict[str, float]) -> None:
        super().step(step, metrics)
        time.sleep(1e6)


class SleepsAtOnce(Notes):
    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        time.sleep(1e6)
        return ""


class LeavesAChild(Notes):
    """Ends its process, and leaves a child behind that holds its standard input."""

    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        (Path(facts["directory"]) / "child").write_text(str(child.pid))
        os._exit(3)


class HoldsTheLock(Notes):
    """Sleeps in C without giving Python's lock away, with a child of its own, and is deaf to SIGTERM."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"], start_new_session=True)
        self.note("child", child.pid, os.getpid())
        ctypes.PyDLL(None).sleep(1_000_000)


class Raises(Notes):
    def step(self, step: int, metrics: dict[str, float]) -> None:
        if step != 3:
            raise ConnectionError("no route\nto the server")
        super().step(step, metrics)


class CannotBegin(Notes):
    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        raise SystemExit("log in first")


class Leaves(Notes):
    def step(self, step: int, metrics: dict[str, float]) -> None:
        os._exit(3)


class Prints(Notes):
    def step(self, step: int, metrics: dict[str, float]) -> None:
        print("over the display")
        os.write(1, b"and below it\n")
        super().step(step, metrics)
