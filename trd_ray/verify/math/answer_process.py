"""The child of MathVerifier: one JSON line in, one JSON line out, until the pipe closes.

    {"ask": "value", "gold": ..., "answer": ..., "timeout_s": ...}
        ->  symbolic.py (math-verify, SymPy)  ->  {"passed": ..., "detail": ..., "seconds": ...}

It is run as a script, so that it imports math-verify and nothing of trd_ray. Its own child, made by fork, compares:

- The comparing process may die: by its own alarm, for want of memory, or by a stack overflow. A new one takes its
  place in milliseconds.
- Every question gets exactly one reply. This process hands it on and keeps it until it is answered. If the comparing
  process dies in between, the reply says how: it crashed over the question, or it was killed from outside.
- The alarm is the deadline. The kernel delivers it as death, even while the interpreter is deep inside one
  multiplication.
- The closed pipe ends both processes. A comparison under way when the parent dies is still bounded by its alarm.
"""

import contextlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

MEMORY_BYTES = 2 << 30  # of address space, of which the libraries reserve under 1 GiB
# A process does not do this to itself: somebody else did, or the system when memory ran out.
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

# The grammar's tables fill as it reads. Without these, a worker's first answers take ten times as long.
WARM_UP = (
    (r"\frac{\sqrt{3}}{2}", r"-3\sqrt{2}+\frac{1}{\sqrt[3]{5}}"),
    ("x^2+2x+1", "(x-1)(x+2)^{3}"),
    (r"\frac{x}{2}-3y", r"\frac{n(n+1)}{2}"),
    (r"2\pi r^2", r"\frac{4}{3}\pi-e^{2}"),
    (r"\sin^2x+2\cos 3x", r"\frac{\tan(x)}{\ln 2}"),
    (r"\log_2 8", r"5!\cdot\binom{5}{2}"),
    ("1+2i", r"2^{n+1}-3\times 10^{4}"),
    (r"|x|", r"\sqrt{5-2\sqrt{6}}/4"),
)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the replies
    try:
        asks = comparisons()
    except Exception as e:
        hello = {"error": f"{type(e).__name__}: {e}"}
    else:
        hello = {}
    print(json.dumps(hello), file=replies, flush=True)
    if hello:
        return
    comparing = ComparingProcess(partial(serve, asks))
    for question in sys.stdin:
        print(comparing.reply(question), file=replies, flush=True)


class ComparingProcess:
    """A fork of this process, which is made anew when it has died."""

    def __init__(self, serves: Callable[[socket.socket], None]):
        """`serves` answers each line of its pipe with one line; it is called in the fork."""
        self._serves = serves
        self._fork()

    def reply(self, question: str) -> str:
        """The reply to one question, each a line of JSON: what the process says, or why it says nothing."""
        if os.waitpid(self._pid, os.WNOHANG) != (0, 0):  # it died while idle, which is not this question's fault
            self._fork()
        line = ""
        with contextlib.suppress(OSError):  # the pipe breaks when the process dies
            self._pipe.sendall(question.encode())
            line = self._replies.readline()
        if line.endswith("\n"):
            return line.rstrip()
        status = os.waitpid(self._pid, 0)[1]
        self._fork()
        return json.dumps({"given_up": _ending(os.waitstatus_to_exitcode(status))})

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()  # else the process would keep its own pipe open when this one is gone
            try:
                self._serves(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._pipe, self._replies = ours, ours.makefile()


def _ending(code: int) -> str:
    """Why the comparing process ended, in the words that MathVerifier knows."""
    if code == -signal.SIGALRM:
        return "deadline passed"
    return "process killed" if -code in KILLS else "process crashed"


def serve(asks: dict[str, Callable[..., bool]], pipe: socket.socket) -> None:
    for line in pipe.makefile():
        request = json.loads(line)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            passed = asks[request["ask"]](request["gold"], request["answer"])
            reply = {"passed": bool(passed), "detail": ""}
        except Exception as e:  # RecursionError, MemoryError and whatever SymPy makes of hostile input
            reply = {"passed": False, "detail": f"cannot be compared ({type(e).__name__})"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply["seconds"] = time.monotonic() - start
        pipe.sendall(f"{json.dumps(reply)}\n".encode())


def comparisons() -> dict[str, Callable[..., bool]]:
    """What can be asked, by name; warmed up."""
    # Loaded by its path: the script's folder is not on the import path, where its names would hide other packages.
    spec = importlib.util.spec_from_file_location("symbolic", Path(__file__).with_name("symbolic.py"))
    assert spec and spec.loader
    symbolic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(symbolic)
    for gold, answer in WARM_UP:
        symbolic.value(gold, answer)
    return symbolic.ASKS


if __name__ == "__main__":
    main()
