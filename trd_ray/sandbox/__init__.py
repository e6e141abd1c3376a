"""Run a hostile Python program and see nothing of it but its output.

    Sandbox() --script(source, limits)----> program.run(stdin)  -> Outcome(status, stdout, ...)
              '-function(source, "f", ...)-> program.call(args) -> Outcome(status, value=...)

Outside: `backends` (bubblewrap, unshare), `interpreter` (what the sandbox shows of the host), `process` (the socket).
In the folder `inside`: `mounts`, `confine`, `harness` (process 1), `child`, `program`, and for both sides `frames` and
`values`.

- A program sees the interpreter and NumPy, read-only, and a folder of its own. It sees no network, no process of ours
  and no environment variable of ours. Expected outputs never enter.
- Every process of a program ends when the `with` block is left, on close(), on an exception, and when this process
  dies, however that happens.
- Any number of threads may use a Sandbox. A program serves one thread at a time, whichever that is.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from trd_ray.sandbox import backends, values
from trd_ray.sandbox.process import Broken, Process

MAX_STRETCH = 3  # of the wall time, where a busy machine lets a program wait for a processor
GRACE_S = 2.0  # for the harness to say that a limit was broken, before the sandbox is ended from outside
KILLED = "killed"  # the key of a report
_STATUSES = {"ok", "error", "time", "memory", "output", "died"}


@dataclass(frozen=True)
class Limits:
    time_s: float = 10.0  # a case's wall time, without waiting for a processor, and CPU time of all its processes
    memory_mib: int = 1024  # address space of a process, and resident memory of all processes together
    output_kib: int = 1024  # stdout, or the returned value as JSON
    processes: int = 32  # and threads
    files_mib: int = 64  # in the temporary folder, all together


@dataclass(frozen=True)
class Outcome:
    """What a case came to. All of it but `seconds` comes from the program. Text is valid UTF-8, except in `value`.

    status: "ok"; "error" (an exception, a non-zero exit, a signal); "time", "memory", "output" (a limit);
    "died" (the function's process, or the sandbox, ended before it answered). `killed` says of "died" that somebody
    outside killed the sandbox, which tells nothing about the program.
    """

    status: str
    stdout: str = ""
    value: Any = None
    stderr: str = ""  # its end
    detail: str = ""
    seconds: float = 0.0
    exit_code: int | None = None  # of a script; minus the signal that killed it
    killed: bool = False


class Sandbox:
    """backend: "auto" (bubblewrap, else unshare), "bubblewrap", "unshare" or "unsafe_no_sandbox".

    Raises UserError, with the remedy, where the backend cannot start a program on this machine.
    """

    def __init__(self, backend: str = "auto"):
        self.backend = backends.working(backend)

    def script(self, source: str, limits: Limits | None = None) -> "Script":
        """A program that reads stdin and writes stdout. Every run is a fresh process."""
        return Script(self.backend, source, limits or Limits(), "", "")

    def function(self, source: str, entry_point: str, limits: Limits | None = None, prelude: str = "") -> "Function":
        """A function `f`, or `Solution.f` of one instance. The source is loaded once, after `prelude`."""
        return Function(self.backend, source, limits or Limits(), entry_point, prelude)


class _Program:
    def __init__(self, backend: str, source: str, limits: Limits, entry_point: str, prelude: str):
        self._backend = backend
        self._limits = limits
        counted = {"time_s": limits.time_s, "memory_bytes": limits.memory_mib << 20, "processes": limits.processes}
        counted |= {"wall_s": MAX_STRETCH * limits.time_s}
        counted |= {"output_bytes": limits.output_kib << 10, "files_bytes": limits.files_mib << 20}
        self._config = {"source": source, "entry_point": entry_point, "prelude": prelude, "limits": counted}
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self._started()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _started(self) -> Process:
        if self._process is None:
            self._process = backends.start(self._backend, self._config)
        return self._process

    def _ask(self, body: bytes, loads: bool = False) -> tuple[dict, bytes]:
        wait_s = self._config["limits"]["wall_s"] * (2 if loads else 1) + GRACE_S + len(body) / 10e6
        try:
            report, answer = self._started().ask({}, body, wait_s, (self._limits.output_kib << 10) + 1)
            report.pop(KILLED, None)  # for us alone to say
            return report, answer
        except TimeoutError:
            self.close()
            return {"status": "time", "detail": "no answer by the deadline", "seconds": wait_s}, b""
        except Broken as e:
            killed = self._started().was_killed()
            self.close()
            return {"status": "died", "detail": str(e), KILLED: killed}, b""
        except BaseException:
            self.close()
            raise


class Script(_Program):
    def run(self, stdin: str) -> Outcome:
        report, stdout = self._ask(stdin.encode("utf-8", "replace"))
        if report.get("left_files"):
            self.close()  # the next case finds an empty folder
        return _outcome(report, stdout=stdout.decode("utf-8", "replace"))


class Function(_Program):
    def call(self, args: list) -> Outcome:
        report, line = self._ask(json.dumps([values.encode(arg) for arg in args]).encode(), loads=True)
        if report.get("status") != "answered":
            return _outcome(report, stdout=report.get("stdout", ""))
        report["status"] = "died"
        value = None
        try:
            reply = json.loads(line, parse_constant=_refuse)
            if "error" in reply:
                report["status"] = "memory" if reply.get("memory") is True else "error"
                report["detail"] = str(reply["error"])[:500]
            else:
                value = values.decode(reply["value"])
                report["status"] = "ok"
        except (ValueError, KeyError, TypeError, RecursionError):
            report["detail"] = "the reply is no value"
        return _outcome(report, stdout=report.get("stdout", ""), value=value)


def _outcome(report: dict, stdout: str, value: Any = None) -> Outcome:
    status = report.get("status")
    if status not in _STATUSES:
        status = "died"
    seconds = report.get("seconds")
    exit_code = report.get("exit_code")
    return Outcome(
        status=status,
        stdout=_text(stdout),
        value=value,
        stderr=_text(report.get("stderr", ""))[-4096:],
        detail=_text(report.get("detail", ""))[:500],
        seconds=seconds if isinstance(seconds, float) else 0.0,
        exit_code=exit_code if type(exit_code) is int else None,
        killed=report.get(KILLED, False),
    )


def _text(text: object) -> str:
    """Text in which half a character has become "?": neither Arrow nor a terminal takes one."""
    return str(text).encode("utf-8", "replace").decode()


def _refuse(constant: str) -> None:
    raise ValueError(constant)
