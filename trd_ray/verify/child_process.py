"""A child process that judges what must not be judged in this one: one JSON line in, one JSON line out.

    request  ->  Asking.ask()  ==pipe==>  a script, run with this interpreter  ->  reply, or {"given_up": why}

- The script limits itself, keeps each request to its deadline, and says when a process of its own crashed over one.
- A death need not be the request's fault: another process may have filled the memory. So the request is made once
  more. If it crashes the process again, it is the request that cannot be judged. If the process is killed again, or
  says nothing though the deadline has passed (it is stopped), nothing is known: the reply begins with UNJUDGED.
- The child ends with the pipe: when this process closes it, and when this process dies.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from trd_ray.errors import Lost
from trd_ray.verify.pipes import receive
from trd_ray.verify.verdict import UNJUDGED

START_TIMEOUT_S = 120.0  # the child imports large libraries, which a busy machine does slowly
DEADLINE = "deadline passed"
KILLED, CRASHED = "process killed", "process crashed"  # as the scripts say it too
SILENT = "no answer"
GRACE_S = 10.0  # for the child to say that the deadline passed, on a busy machine, before it is killed


class Asking:
    """Asks the child of one script, which is started by the first request and again after it has ended.

    `does` is what the process does, as in "compares"; `done` is what it does to an answer, as in "compared".
    """

    def __init__(self, script: Path, does: str, done: str, needs: str):
        self._script = script
        self._does = does
        self._needs = needs
        self._twice = {  # what is said of a request that ended so two times
            KILLED: f"{UNJUDGED} (the process that {does} died twice)",
            SILENT: f"{UNJUDGED} (the process that {does} gave no answer twice)",
            CRASHED: f"cannot be {done} (the process that {does} crashed twice)",
        }
        self._lock = threading.Lock()  # held by whoever asks
        self._child: JudgingChild | None = None

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The child's reply to one request, which is made again once if the process that judges ends over it."""
        why = ""
        for _ in range(2):
            reply = self._ask_once(request, timeout_s)
            why = reply.get("given_up", "")
            if why not in self._twice:
                return reply
        return {"given_up": self._twice[why]}

    def _ask_once(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            return self._started().ask(request | {"timeout_s": timeout_s}, timeout_s + GRACE_S)
        except (TimeoutError, EOFError, OSError) as e:
            self._stop()
            return {"given_up": SILENT if isinstance(e, TimeoutError) else KILLED}

    def _started(self) -> "JudgingChild":
        """The child, which is started where there is none; that takes a second attempt if it is killed."""
        if self._child is None or not self._child.alive:
            self._stop()
            try:
                self._child = JudgingChild(self._script, self._does, self._needs)
            except Lost:
                self._child = JudgingChild(self._script, self._does, self._needs)
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class JudgingChild:
    """The process of a script, ready to be asked. RuntimeError if it cannot start, Lost if it ended first."""

    def __init__(self, script: Path, does: str, needs: str):
        # -P: the folder of the script stays off the import path, where its names (units, latex) would hide packages.
        command = [sys.executable, "-P", str(script)]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # to kill it together with the process that it forks
            env=os.environ | {"PYTHONHASHSEED": "0"},  # what a set holds comes in the same order in every process
        )
        assert self._process.stdin and self._process.stdout
        self._requests = self._process.stdin
        self._replies = self._process.stdout
        try:
            self.hello = receive(self._replies.fileno(), START_TIMEOUT_S)  # what the script says when it is ready
        except (TimeoutError, EOFError) as e:
            self.kill()
            raise Lost(f"the process that {does} answers ended before it began ({type(e).__name__})") from e
        if why := self.hello.get("error"):
            self.kill()
            raise RuntimeError(f"the process that {does} answers did not start ({why}): is {needs} installed?")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], wait_s: float) -> dict[str, Any]:
        """The child's reply. TimeoutError, EOFError or OSError when it is stuck or dead, and then of no more use."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        return receive(self._replies.fileno(), wait_s)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._replies.close()
