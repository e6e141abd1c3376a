"""The heir of the process above a run: where that one is killed, it ends what the run leaves behind.

    supervise  --fork, twice-->  the heir, nobody's child, which waits       <--socket-->  supervise
                                   '-- the other end closed without a word: the processes with the run's TMPDIR

A run whose supervisor is killed is killed with it, and a local Ray with that. Workers of that Ray which had only begun
to start do not hear of it: they go on looking for their raylet, below nobody. They are told from other programs by the
temporary folder in their environment, which is the run's own and which every process of the run was given.

The heir is a fork, so it costs a few pages of memory. Only Python's own modules are needed here.
"""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from trd_ray.litter import remove_semaphores, semaphores

LEAVE_S = 10.0  # for processes to end by themselves
TERM_S = 5.0  # to end by SIGTERM
KILL_S = 5.0  # to end by SIGKILL
POLL_S = 0.1
DISMISSED = b"."
DISMISSAL_S = 5.0

Process = tuple[int, str]  # its pid and its name


class Heir:
    """Waits until this process has ended, unless it is dismissed. To be made before there are threads and children."""

    def __init__(self, temporary: Path) -> None:
        """`temporary`: the run's temporary folder, the TMPDIR of its processes; the heir removes it."""
        self.line, below = socket.socketpair()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                self._live(below, temporary)
            os._exit(0)
        below.close()
        os.waitpid(child, 0)

    def dismiss(self) -> None:
        """End the heir; returns when it has ended."""
        self.line.settimeout(DISMISSAL_S)
        with contextlib.suppress(OSError):  # it was killed, or is stopped
            self.line.sendall(DISMISSED)
            self.line.recv(1)
        self.line.close()

    def _live(self, line: socket.socket, temporary: Path) -> None:
        try:
            os.setsid()  # a Ctrl-C at the terminal is not for it
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            kept = os.dup2(line.fileno(), 3)
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))  # also the lock on the folder, and the other end
            if os.read(kept, 1) != DISMISSED:
                _end(temporary)
        finally:
            os._exit(0)


def _end(temporary: Path) -> None:
    shared = semaphores(pid for pid, _ in with_tmpdir(temporary))
    end_those(lambda: with_tmpdir(temporary))
    shutil.rmtree(temporary, ignore_errors=True)
    remove_semaphores(shared)


def end_those(living: Callable[[], list[Process]], leave_s: float = LEAVE_S) -> list[str]:
    """Wait for the processes that `living` lists to end, then end the others; returns the names of those others."""
    found: list[str] = []
    for number, patience_s in ((None, leave_s), (signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        left = living()
        if not left:
            break
        if number is not None:
            found = found or [name for _, name in left]
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while living() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    return found


def with_tmpdir(temporary: Path) -> list[Process]:
    """The processes of this user whose temporary folder is this one, or one in it, and which have not ended."""
    mine = f"TMPDIR={temporary}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # an ended process has an empty environment
                variables = Path(entry.path, "environ").read_bytes().split(b"\0")
                if any(one == mine or one.startswith(mine + b"/") for one in variables):
                    found.append((int(entry.name), Path(entry.path, "comm").read_text(errors="replace").strip()))
    return found
