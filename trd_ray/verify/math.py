r"""Is the answer in the last \boxed{...} the one that the problem expects?

    text -> last_boxed -> same string or whole number? -> verdict, here
                       `-> else one JSON line ==pipe==> answer_process (math-verify) ==pipe==> verdict

Symbolic comparison of what a model wrote can take for ever (`10^{10^{10}}`), eat all memory or overflow the stack, and
math-verify's own deadline needs SIGALRM in a main thread. So it runs in a child that is kept warm, limits its memory,
and replaces the process that compares when that misses its deadline or dies. The child ends with the pipe, when this
process closes it or dies, however that happens.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

from trd_ray.verify import EMPTY, Verdict

MAX_ANSWER_CHARS = 2000  # longer is no answer, and only costs the parser time
START_TIMEOUT_S = 120.0  # of the child: it imports SymPy, which a busy machine does slowly
GRACE_S = 2.0  # for the child to say that the deadline passed, before it is killed

_BRACES = re.compile(r"\\{1,3}boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` skips \{ and \}, which balance nothing in TeX
_FULL_STOP = re.compile(r"(?<![.])[.]$")  # but not the dots of 0.333...
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class MathVerifier:
    r"""Compares the last `\boxed{...}` of a response with `problem["answer"]`; nothing outside a box counts."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: _Child | None = None  # started by the first answer that needs it

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        passed, extracted, detail = self._judge(text, problem["answer"])
        return Verdict(passed, float(passed), extracted, detail, time.monotonic() - start)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _judge(self, text: str | None, expected: str) -> tuple[bool, str, str]:
        if not isinstance(text, str) or not text.strip():
            return False, "", EMPTY
        found = last_boxed(text)
        if found is None:
            return False, "", r"no \boxed{} answer"
        answer = _bare(found)
        if not answer:
            return False, "", r"empty \boxed{}"
        if len(answer) > MAX_ANSWER_CHARS:
            return False, _printable(answer[:200]) + "…", f"answer of more than {MAX_ANSWER_CHARS} characters"
        shown = _printable(answer)
        if shown != answer:
            return False, shown, "answer is not text"
        gold = _bare(last_boxed(expected) or expected)
        if answer == gold:
            return True, shown, ""
        if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(gold):
            same = int(answer) == int(gold)
            return same, shown, "" if same else "not equal"
        passed, detail = self._compare(gold, answer)
        return passed, shown, detail

    def _compare(self, gold: str, answer: str) -> tuple[bool, str]:
        with self._lock:
            if self._child is None or not self._child.alive:
                self._stop()
                self._child = _Child()
            try:
                reply = self._child.ask({"gold": gold, "answer": answer, "timeout_s": self.timeout_s}, self.timeout_s)
            except (TimeoutError, EOFError, OSError) as e:
                self._stop()
                return False, "deadline passed" if isinstance(e, TimeoutError) else "verifier process died"
            return reply["passed"], reply["detail"]

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child:
    """The process of answer_process.py, ready to compare. RuntimeError when it does not start."""

    def __init__(self):
        # -P: the script's folder, where this file shadows the standard library's math, stays off the import path.
        command = [sys.executable, "-P", str(Path(__file__).with_name("answer_process.py"))]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # to kill it together with the process that compares
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout
        try:
            why = self._receive(START_TIMEOUT_S).get("error")
        except (TimeoutError, EOFError) as e:
            why = type(e).__name__
        if why:
            self.kill()
            raise RuntimeError(f"the process that compares answers did not start ({why}): is math-verify installed?")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict, timeout_s: float) -> dict:
        """TimeoutError, EOFError or OSError when the child is stuck or dead; it is of no more use then."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        return self._receive(timeout_s + GRACE_S)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._replies.close()

    def _receive(self, timeout_s: float) -> dict:
        line = b""
        poll = select.poll()  # select() would refuse descriptors above 1023, which a Ray worker can have
        poll.register(self._replies, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            piece = os.read(self._replies.fileno(), 65536)
            if not piece:
                raise EOFError
            line += piece
        return json.loads(line)


def last_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that opens last and is closed, in one pass over the text; None without one."""
    found, opened_at, stack = None, -1, []
    first = text.find("boxed")
    if first < 0:
        return None
    for token in _BRACES.finditer(text, max(0, first - 3)):
        word = token.group()
        if "boxed" in word:
            stack.append(token.end())
        elif word == "{":
            stack.append(-1)
        elif word == "}" and stack:
            start = stack.pop()
            if start > opened_at:
                found, opened_at = text[start : token.start()], start
    return found


def _bare(answer: str) -> str:
    """Without the blanks and dollar signs around it and the full stop after it."""
    return _FULL_STOP.sub("", answer.strip().strip("$").strip())


def _printable(text: str) -> str:
    """Control characters and lone surrogates, which neither Arrow nor a terminal takes, become U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)
