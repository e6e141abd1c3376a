"""Parts for the tests of the trial, named there as `doctor.stand_ins:NAME`: they pass, fail, crash and hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trd_ray.doctor.gpu.outcome import Figures, PartFailed, PartSkipped


def passes(folder: Path) -> Figures:
    runs = folder / "runs"
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    return {"speed": 1234.5, "card": "a stand-in"}


def fails(folder: Path) -> Figures:
    raise PartFailed("engine and learner differ", {"gap": 0.5})


def raises(folder: Path) -> Figures:
    raise ZeroDivisionError("a part divided\nby zero")


def lacks_something(folder: Path) -> Figures:
    raise PartSkipped("Qwen/Qwen3-8B is not in the hub's cache")


def crashes(folder: Path) -> Figures:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs(folder: Path) -> Figures:
    """With a process that has left its session, as engines do."""
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (folder / "left").write_text(str(left.pid))
    time.sleep(600)
    return {}
