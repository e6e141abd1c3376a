"""The parent's side of call_process.py: one process that has imported the function, and those forked from it.

    Importer(asked)  --its fork-->  Caller  --text, problem-->  reply, TimeoutError or EOFError

An Importer that is closed, or collected, ends everything behind it. Any thread may use it; a Caller has one at a time.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from trd_ray.errors import Lost
from trd_ray.verify.own.shape import CallShape
from trd_ray.verify.pipes import receive

START_TIMEOUT_S = 120.0  # for imports such as torch, on a busy machine
FORK_TIMEOUT_S = 30.0


class CannotStart(Exception):
    """The function cannot be imported or made here; the message says why, after its name."""


class Importer:
    """Raises CannotStart where the function cannot be had, Lost where the process ended before it said so."""

    def __init__(self, asked: dict[str, Any]):
        self._lock = threading.Lock()  # a question and its reply belong together
        self._control, theirs = socket.socketpair()
        script = str(Path(__file__).with_name("call_process.py"))
        with theirs:
            # -P: the folder of the script stays off the import path, where its names would hide packages.
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        try:
            self._send(asked | {"path": [place or os.getcwd() for place in sys.path]})
            hello = receive(self._control.fileno(), START_TIMEOUT_S)
        except TimeoutError:
            self.close()
            raise CannotStart(f"takes more than {START_TIMEOUT_S:.0f} s to import: let it load less") from None
        except (EOFError, OSError) as e:
            code = self.close()
            if code not in (-signal.SIGKILL, -signal.SIGTERM):
                raise CannotStart(f"ends its process while it is imported ({ending(code)})") from e
            raise Lost("the process that calls a verifier's function ended before it began") from e
        if error := hello.get("error"):
            self.close()
            raise CannotStart(error)
        self.shape = CallShape.from_json(hello["shape"])

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> "Caller":
        """A process that is ready to call. Raises CannotStart where a class cannot be made, Lost if it ended."""
        try:
            with self._lock:
                self._send({"do": "fork"})
                reply, [fileno] = self._with_socket()
            caller = Caller(reply["pid"], socket.socket(fileno=fileno))
        except (TimeoutError, EOFError, OSError) as e:
            raise Lost(f"the process that calls a verifier's function could not be forked ({type(e).__name__})") from e
        try:
            error = caller.receive(START_TIMEOUT_S).get("error")
        except TimeoutError:
            error = f"takes more than {START_TIMEOUT_S:.0f} s to make"
        except (EOFError, OSError):
            error = f"ends its process while it is made ({ending(self.end(caller))})"
        if error:
            self.end(caller)
            raise CannotStart(error)
        return caller

    def end(self, caller: "Caller") -> int | None:
        """Kill it with all that it has started; returns its exit code as subprocess has them, None if nobody knows."""
        caller.kill()
        if caller.reaped:
            return None
        caller.reaped = True
        try:
            with self._lock:
                self._send({"do": "end", "pid": caller.pid})
                return receive(self._control.fileno(), FORK_TIMEOUT_S)["code"]
        except (TimeoutError, EOFError, OSError):
            return None

    def close(self) -> int:
        self._control.close()
        try:
            return self._process.wait(timeout=5)  # it kills what it has forked first
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def _send(self, request: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(request).encode() + b"\n")

    def _with_socket(self) -> tuple[dict[str, Any], list[int]]:
        """The reply to a fork, which is one short line, and the socket that comes with it."""
        self._control.settimeout(FORK_TIMEOUT_S)
        line, sockets, _, _ = socket.recv_fds(self._control, 4096, 1)
        self._control.settimeout(None)
        if not sockets:
            raise EOFError
        return json.loads(line), sockets


class Caller:
    """A forked process, which makes one call at a time."""

    def __init__(self, pid: int, pipe: socket.socket):
        self.pid = pid
        self.reaped = False
        self._pipe = pipe

    def ask(self, question: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """TimeoutError, EOFError or OSError when it is stuck or dead, and then of no more use."""
        self._pipe.sendall(json.dumps(question, default=str).encode() + b"\n")
        return self.receive(deadline_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        return receive(self._pipe.fileno(), timeout_s)

    def kill(self) -> None:
        """It has a group of its own, and a dead one keeps its number until the importer has been asked for its end."""
        if not self.reaped:
            for kill in (os.killpg, os.kill):  # it may not have its group yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self.pid, signal.SIGKILL)
        self._pipe.close()


def ending(code: int | None) -> str:
    """How a process ended, for people."""
    if code is None:
        return "nobody knows how"
    if code >= 0:
        return f"it exited with {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
