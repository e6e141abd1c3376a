"""The process above a run: it says what ended a run that could not say so itself, and leaves none of its processes.

    trd train ...  =  this process --the same command--> the run (Ray's driver) --> Ray, engines, learner
                           ^  <-------- last words (pipe) --------'                     |
                           '----------- adopted when the run has ended -----------------'

Why a process above:

- Ray's own code ends a driver on the spot when its raylet or control service dies.
- A process of Ray can hang in its exit after the raylet that would have ended it has gone.
- A process that is killed leaves its temporary files.
- A driver that is stopped (SIGSTOP), or that hangs in a call, cannot say so.

So the driver is a child of a process that imports nothing of Ray, and its temporary folder is deleted after it. That
process passes signals on. It adopts (PR_SET_CHILD_SUBREAPER) what the run leaves behind, waits for it and then ends it.
These are its descendants, so nobody else's processes. A run whose supervisor is killed ends with it, and a third
process ends what is left then (trd_ray.session.heir). Where that is killed too, the next run on this machine removes
the temporary folder.

The driver beats (last_words) wherever its main thread waits. Once it has not for `heartbeat_s`, the process above says
so, with the place in the program, on screen and in the run's events.jsonl. It ends nothing: the call may come back, and
a person who reads where it hangs knows more.
"""

import contextlib
import getpass
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from trd_ray.litter import owned_folder, remove_semaphores, semaphores, sweep
from trd_ray.session import last_words
from trd_ray.session.heir import LEAVE_S, Heir, end_those
from trd_ray.session.silence import Silence

FAILED = 1
LOOK_EVERY_S = 1.0
SEMAPHORES_EVERY_S = 30.0


def supervised(
    main: Callable[[list[str]], int], arguments: list[str], tell: Callable[[str], object] | None = None
) -> int:
    """Run this very command again in a child; in that child, run `main(arguments)`.

    `tell` gets what the process above has to say of an end, in place of standard error.
    """
    if last_words.PIPE in os.environ:
        last_words.enter_run()
        try:
            return main(arguments)
        finally:  # not reached if Ray ends the process on the spot
            last_words.say(ended=True)
    return _Supervisor(tell or _tell).run()


class _Supervisor:
    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.child: subprocess.Popen | None = None
        self.passed_on: int | None = None
        self.words: dict[str, Any] = {}  # all that the run has said, merged
        self.semaphores: set[str] = set()  # that processes of the run were seen to have

    def run(self) -> int:
        sweep()
        temporary, _lock = owned_folder()
        heir = Heir(temporary)  # before the line below, which would make it a process that the run left behind
        last_words.prctl(last_words.PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            heartbeat = temporary / last_words.HEARTBEAT
            heartbeat.touch()
            environment = os.environ | _kept_places() | {last_words.PIPE: str(write), "TMPDIR": str(temporary)}
            self.child = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=(write,), close_fds=True
            )
            os.close(write)
            if self.passed_on is not None:  # the signal came before there was a child
                self.child.send_signal(self.passed_on)
            code = self._wait(self.child, read, heartbeat)
            left_at_once = {name for _, name in _living()}
            self.semaphores |= semaphores(pid for pid, _ in _living())
            self.words |= _read(read)
            left = end_descendants()
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            remove_semaphores(self.semaphores)
            heir.dismiss()
        words = self.words
        if left:
            self.tell(f"ended {len(left)} process(es) that the run left behind: {', '.join(left)[:200]}")
        if words.get("ended"):
            return code if code >= 0 else 128 - code
        return self._without_a_word(code, words, left_at_once)

    def _wait(self, child: subprocess.Popen, read: int, heartbeat: Path) -> int:
        """The exit code of the run; meanwhile it is listened to."""
        silence = Silence(child.pid)
        looked = -math.inf
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(LOOK_EVERY_S)
            self.words |= _read(read)
            now = time.monotonic()
            silence.look(_changed(heartbeat), now, self.words)
            if now - looked > SEMAPHORES_EVERY_S:
                looked = now
                self.semaphores |= semaphores(pid for pid, _ in _below())

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.passed_on = number
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)

    def _without_a_word(self, code: int, words: dict[str, Any], left_at_once: set[str]) -> int:
        if code < 0 and -code == self.passed_on:  # the run had not begun
            self.tell(f"stopped by {signal.Signals(-code).name}")
            return 128 - code
        directory = words.get("directory")
        if directory is None and code >= 0:  # argparse exited, and has said why
            return code
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"was ended by Ray (exit code {code})"
        parts = [f"the process that led the run {how}{_why(words.get('log'), words.get('log_from', 0), left_at_once)}"]
        if directory is not None:
            from trd_ray.session.endings import KEPT  # here, since it imports Ray, which this process rarely needs

            parts.append(KEPT[words["job"]](Path(directory)))
        if words.get("log"):
            parts.append(f"its last words are in {words['log']}")
        self.tell("; ".join(parts))
        return 128 - code if code < 0 else FAILED


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _kept_places() -> dict[str, str]:
    """Places in the temporary folder that should outlive one run: Ray's logs, torch's compiled kernels."""
    temporary = tempfile.gettempdir()
    places = {"RAY_TMPDIR": temporary}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        places["TORCHINDUCTOR_CACHE_DIR"] = f"{temporary}/torchinductor_{getpass.getuser()}"
    return {name: place for name, place in places.items() if name not in os.environ}


# A local Ray's other processes, by the names that the kernel keeps of them.
_BESIDE_RAYLET = {"gcs_server", "ray::DashboardA", "ray::RuntimeEnv"}
# What Ray's core says when it ends a driver -> what that means.
_SIGNS = {
    "Raylet is terminated": last_words.RAYLET_DIED,
    "connect to GCS": "Ray's control service (GCS) has died or cannot be reached",
    "Cannot allocate memory": "memory ran out",
}


def _why(log: str | None, since: int, left: set[str]) -> str:
    """What Ray's core said in the log, from the byte `since` on, at which this start of the run began.

    Sometimes it says nothing. Processes of a local Ray that the run has `left` without a raylet tell that this died.
    """
    try:
        tail = Path(log or "").read_bytes()[since:][-20_000:].decode(errors="replace")
    except OSError:
        tail = ""
    otherwise = f": {last_words.RAYLET_DIED}" if left & _BESIDE_RAYLET and "raylet" not in left else ""
    return next((f": {meaning}" for sign, meaning in _SIGNS.items() if sign in tail), otherwise)


def _read(pipe: int) -> dict[str, Any]:
    """What the run has said since, merged; no wait for more, since a child that the run left may hold the pipe open."""
    with contextlib.suppress(BlockingIOError), os.fdopen(pipe, "rb", closefd=False) as words:
        found: dict[str, Any] = {}
        for line in (words.read() or b"").splitlines():
            with contextlib.suppress(ValueError):
                found |= json.loads(line)
        return found
    return {}


def end_descendants(leave_s: float = LEAVE_S) -> list[str]:
    """Wait for all processes below this one to end, then end the others; returns the names of those others."""
    return end_those(_living, leave_s)


def _living() -> list[tuple[int, str]]:
    """(pid, name) of every process below this one that has not ended; the ended ones are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return _below()


def _below() -> list[tuple[int, str]]:
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                text = Path(entry.path, "stat").read_text(errors="replace")
                name, _, rest = text.partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if state not in "ZX":
                    shown = "".join(c if c.isprintable() else "?" for c in name)  # a process names itself as it likes
                    parents.setdefault(int(parent), []).append((int(entry.name), shown))
    below: list[tuple[int, str]] = []
    waiting = [os.getpid()]
    while waiting:
        children = parents.get(waiting.pop(), [])
        below += children
        waiting += [pid for pid, _ in children]
    return below


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"trd: {text}", file=sys.stderr, flush=True)
