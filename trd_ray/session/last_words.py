"""The run's half of its line to the process above it (see `trd_ray.session.supervise`).

in the run: enter_run(), then say(directory=..., job=...) ... say(ended=True)  --pipe-->  the process above
            beat(), wherever its main thread waits                             --time of a file-->
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIPE = "TRD_RAY_LAST_WORDS"  # environment variable: the pipe's number, in the run alone
PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
RAYLET_DIED = "Ray's raylet on this machine has died (killed, or crashed)"
HEARTBEAT = "heartbeat"  # the file in the run's temporary folder
BEAT_EVERY_S = 1.0
SAY_STACKS = signal.SIGUSR2  # on which a run that has said `stacks` writes what it is doing into that file
_words: Any = None  # in the run: the pipe to the process above
_beats: Path | None = None


def say(**words: Any) -> None:
    """Tell the process above, if there is one, about the run: its `job`, `directory` and `log`, or that it `ended`."""
    if _words is not None:
        with contextlib.suppress(OSError):
            _words.write(json.dumps(words) + "\n")


def beat() -> None:
    """Show the process above that the main thread goes on. It needs no room on a disk, so a full one is no silence."""
    if _beats is not None:
        with contextlib.suppress(OSError):
            os.utime(_beats)


@contextlib.contextmanager
def beating() -> Iterator[None]:
    """Beat while the main thread makes one long call that has a deadline of its own."""
    over = threading.Event()

    def beats() -> None:
        while not over.wait(BEAT_EVERY_S):
            beat()

    thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        beat()


def watched(directory: Path, heartbeat_s: float) -> None:
    """From here on the process above says so if this one does not beat for `heartbeat_s`, and where it is then."""
    if _words is None:
        return
    place = directory / "logs" / "stacks.txt"
    with contextlib.suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        faulthandler.register(SAY_STACKS, open(place, "a"), chain=False)  # noqa: SIM115 - open as long as the process
        say(stacks=str(place))
    say(heartbeat_s=heartbeat_s)
    beat()


def enter_run() -> None:
    """Take the pipe, and see that this process ends with the process above, whatever ends that one."""
    global _words, _beats
    number = int(os.environ.pop(PIPE))
    os.set_inheritable(number, False)
    _words = os.fdopen(number, "w", buffering=1)
    _beats = Path(tempfile.gettempdir(), HEARTBEAT)
    above = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != above:  # it died before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
