"""The run's half of its line to the process above it (see `trd_ray.session.supervise`).

in the run: enter_run(), then say(directory=..., job=...) ... say(ended=True)  --pipe-->  the process above
"""

import contextlib
import ctypes
import json
import os
import signal
from typing import Any

PIPE = "TRD_RAY_LAST_WORDS"  # environment variable: the pipe's number, in the run alone
PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
RAYLET_DIED = "Ray's raylet on this machine has died (killed, or crashed)"
_words: Any = None  # in the run: the pipe to the process above


def say(**words: Any) -> None:
    """Tell the process above, if there is one, about the run: its `job`, `directory` and `log`, or that it `ended`."""
    if _words is not None:
        with contextlib.suppress(OSError):
            _words.write(json.dumps(words) + "\n")


def enter_run() -> None:
    """Take the pipe, and see that this process ends with the process above, whatever ends that one."""
    global _words
    number = int(os.environ.pop(PIPE))
    os.set_inheritable(number, False)
    _words = os.fdopen(number, "w", buffering=1)
    above = os.getppid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != above:  # it died before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
