"""What an engine's actor does with its own process: where its output goes, what ends with it, whether it is hung.

    vLLM answered a call of no weight ------------+
    CPU time of this process and all it started --+-> Signs.quiet_s(): how long neither was seen
    one of them is stopped (SIGSTOP) -------------+

- A process that compiles or loads answers nothing for minutes, but it uses its CPUs. So it is not quiet.
- Beside a stopped process the others may spin while they wait for it. So their CPU time says nothing then.
- While vLLM starts, it is quiet only when a process is stopped: weights may come from a slow network.
"""

import contextlib
import getpass
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trd_ray.litter import owned_folder, sweep

# Waits for the end of its input, a pipe. It is no child of the actor, whose children Ray kills before it ends a worker.
REMOVE = 'exec 3<&0; { read _ <&3; kill -s KILL -- "-$1"; rm -rf -- "$2"; } &'
FRESH_S = 10.0  # an answer of vLLM that is not older needs no look at the processes
BUSY_SHARE = 0.05  # of one CPU, used since the last sign: more than what waiting processes use


class Signs:
    """The signs of life that were seen, by the clock of this process."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        usage: Callable[[], tuple[float, bool]] | None = None,
    ):
        self.now, self.usage = now, usage or usage_of_group
        self.started = False  # vLLM is up, and answers
        self.heard()

    def heard(self) -> None:
        """vLLM has answered."""
        self._sign: tuple[float, float | None] = self.now(), None  # when, and CPU seconds until then if they were read

    def quiet_s(self) -> float:
        sign, now = self._sign, self.now()
        sign_s, used_before_s = sign
        if self.started and now - sign_s < FRESH_S:
            return now - sign_s
        used_s, stopped = self.usage()
        busy = used_before_s is not None and used_s - used_before_s > BUSY_SHARE * (now - sign_s)
        if not stopped and (busy or not self.started):
            sign_s = now
        if self._sign is sign:  # else vLLM has answered meanwhile, in another thread
            self._sign = sign_s, used_s if sign_s == now or used_before_s is None else used_before_s
        return now - sign_s


def usage_of_group() -> tuple[float, bool]:
    """(CPU seconds, whether one is stopped) of this process's group: what it started is in it."""
    group, ticks, stopped = str(os.getpgrp()), 0, False
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                text = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:  # it has ended
                continue
            fields = text.rpartition(")")[2].split()  # state, parent, group, ...; the name before may hold anything
            if fields[2] == group:
                ticks += int(fields[11]) + int(fields[12])
                stopped |= fields[0] in "Tt"
    return ticks / os.sysconf("SC_CLK_TCK"), stopped


def redirect_output(path: str) -> None:
    """Send this process's output to a file, and with it the engine process's: it is long, and it explains a death."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def take_descendants_along() -> None:
    """However this process ends, all that it started ends too: a shell waits for the end of a pipe and kills the group.

    Ray does so for a worker that dies, but not when Ray itself is killed (`ray stop --force`): vLLM would live on.

    What the group puts into the temporary folder goes with it: adapters, vLLM's sockets and rendezvous files. They lie
    in a folder of their own, which the shell removes. What a machine that failed has left, the next engine there does.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    sweep()
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        # As torch calls it by default: compiled kernels are to outlive the engine.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}")
    folder, lock = owned_folder()  # by this process and by the shell
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    read, _held_open = os.pipe()
    subprocess.run(
        ["/bin/sh", "-c", REMOVE, "sh", str(os.getpid()), str(folder)], check=True, stdin=read,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock,),
    )  # fmt: skip
    os.close(read)
