r"""Is the answer of a response, the last \boxed{...}, the one that the problem expects?

    text -> last_boxed -> read ----.
                                   |-> Equality -> verdict, most of them here
    problem["answer"]  -> read ----'        `-> a formula: one JSON line ==pipe==> answer_process (math-verify)

Comparing what a model wrote can take for ever (`10^{10^{10}}`), use all memory or overflow the stack. math-verify's own
deadline needs SIGALRM in a main thread. So a child process compares, and it is kept warm:

- It limits its own memory.
- When the process that compares misses the deadline or dies, the child replaces it, and says so of the comparison.
- A death need not be the answer's fault: another process may have filled the memory. So the comparison is made once
  more. If the process crashes again, it is the answer that cannot be compared. If it is killed again, or gives no
  answer though its deadline has passed (it is stopped), nothing is known of the answer: the verdict is UNJUDGED.
- The child ends with the pipe: when this process closes it, and when this process dies.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

from trd_ray.errors import Lost
from trd_ray.verify.math.answer import last_boxed, last_formula, stated
from trd_ray.verify.math.boxes import Boxes, boxes
from trd_ray.verify.math.equal import Equality
from trd_ray.verify.math.forms import Group, TooDeep, read, spelling
from trd_ray.verify.math.second_reading import has_decimal_commas, second_reading
from trd_ray.verify.pipes import receive
from trd_ray.verify.verdict import EMPTY, UNJUDGED, Verdict

MAX_ANSWER_CHARS = 2000  # what is longer is no answer, and only costs the parser time
MAX_SHORT_CHARS = 200  # of an expected answer that is no solution, all of whose boxes are the answer
MAX_FORMULA_CHARS = 600  # of one part; a longer one is a model that repeats itself, and takes the parser seconds
MAX_FEEDBACK_CHARS = 200  # how much of the answer a feedback quotes
START_TIMEOUT_S = 120.0  # the child imports SymPy, which a busy machine does slowly
DEADLINE = "deadline passed"
KILLED, CRASHED = "process killed", "process crashed"  # as answer_process says it too
SILENT = "no answer"
TWICE = {  # what is said of a comparison that ended so two times
    KILLED: f"{UNJUDGED} (the process that compares died twice)",
    SILENT: f"{UNJUDGED} (the process that compares gave no answer twice)",
    CRASHED: "cannot be compared (the process that compares crashed twice)",
}
NO_STATEMENT = "no stated answer"
GRACE_S = 10.0  # for the child to say that the deadline passed, on a busy machine, before it is killed


class MathVerifier:
    r"""Compares the last `\boxed{...}` of a response with `problem["answer"]`, within `timeout_s` of comparing.

    `answer_in_prose`: a response without any box may also state it in prose ("The answer is 42.", "#### 18").
    `answer_in_formula`: where it states none either, its last formula is the answer.
    """

    def __init__(self, timeout_s: float, answer_in_prose: bool = False, answer_in_formula: bool = False):
        self.timeout_s = timeout_s
        self.answer_in_prose = answer_in_prose
        self.answer_in_formula = answer_in_formula
        self._lock = threading.Lock()
        self._child: _Child | None = None  # started by the first answer that needs it

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        passed, extracted, detail = self._judge(text, problem)
        feedback = _feedback(extracted, detail)
        return Verdict(passed, float(passed), extracted, detail, time.monotonic() - start, feedback)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _judge(self, text: str | None, problem: dict) -> tuple[bool, str, str]:
        if not isinstance(text, str) or not text.strip():
            return False, "", EMPTY
        answer = last_boxed(text)
        several = boxes(text) if answer is not None else None
        if several and several.joined:
            answer = several.together
        if answer is None and self.answer_in_prose:
            answer = stated(text)
        if answer is None and self.answer_in_formula:
            answer = last_formula(text)
        if answer is None:
            return False, "", NO_STATEMENT if self.answer_in_prose else r"no \boxed{} answer"
        answer = answer.strip()
        if not answer.strip("$ "):
            return False, "", r"empty \boxed{}"
        if len(answer) > MAX_ANSWER_CHARS:
            return False, _printable(answer[:200]) + "…", f"answer of more than {MAX_ANSWER_CHARS} characters"
        shown = _printable(answer)
        if shown != answer:
            return False, shown, "answer is not text"
        expected = _printable(_expected(problem["answer"])[:MAX_ANSWER_CHARS])
        words = problem.get("problem") or ""
        passed, detail = self._compare(expected, answer, words)
        if several and not passed:
            passed = self._together(expected, several, words)
        return passed, shown, "" if passed else detail

    def _together(self, expected: str, several: Boxes, problem: str) -> bool:
        """Whether several boxes pass where the first comparison, of all that are joined or of the last one, did not.

        Joined ones also do if each is the answer, in two spellings; others if the expected answer has several parts.
        """
        together = several.together
        if len(together) > MAX_ANSWER_CHARS or _printable(together) != together:
            return False
        if several.joined:
            return all(self._compare(expected, one, problem)[0] for one in several.answers)
        try:
            parts = read(expected)
        except TooDeep:
            return False
        return isinstance(parts, Group) and parts.kind != "ratio" and self._compare(expected, together, problem)[0]

    def _compare(self, expected: str, answer: str, problem: str) -> tuple[bool, str]:
        try:
            spelled = spelling(answer)
            if not spelled:
                return False, r"empty \boxed{}"
            if spelling(expected) == spelled:
                return True, ""
            with self._lock:
                asked = _Questions(self._ask, self.timeout_s)
                equality = Equality(asked, problem)
                first = read(expected), read(answer)
                passed = equality.equal(*first)
                if not passed:
                    commas = has_decimal_commas(problem)
                    second = second_reading(expected, commas), second_reading(answer, commas)
                    passed = second != first and equality.equal(*second)
        except (TooDeep, RecursionError):
            return False, "cannot be compared (too deeply nested)"
        except _GivenUp as e:
            return False, str(e)
        return passed, "" if passed else asked.detail or "not equal"

    def _ask(self, request: dict, timeout_s: float) -> dict:
        """The child's reply to one question, which is asked again once if the process that compares ends over it."""
        why = ""
        for _ in range(2):
            reply = self._ask_once(request, timeout_s)
            why = reply.get("given_up", "")
            if why not in TWICE:
                return reply
        return {"given_up": TWICE[why]}

    def _ask_once(self, request: dict, timeout_s: float) -> dict:
        """The child's reply. The child is started where there is none, which takes a second attempt if it is killed."""
        if self._child is None or not self._child.alive:
            self._stop()
            try:
                self._child = _Child()
            except Lost:
                self._child = _Child()
        try:
            return self._child.ask(request | {"timeout_s": timeout_s}, timeout_s)
        except (TimeoutError, EOFError, OSError) as e:
            self._stop()
            return {"given_up": SILENT if isinstance(e, TimeoutError) else KILLED}

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _GivenUp(Exception):
    """The deadline passed, or the child died, and with it the comparison ends."""


class _Questions:
    """What one comparison asks of the child, within one deadline; starting the child does not count."""

    def __init__(self, ask, timeout_s: float):
        self._ask = ask
        self._left_s = timeout_s
        self.detail = ""  # why a question could not be answered

    def __call__(self, ask: str, gold: str | list[str], answer: str | list[str]) -> bool:
        if any(len(side) > MAX_FORMULA_CHARS for side in _strings(gold, answer)):
            self.detail = f"formula of more than {MAX_FORMULA_CHARS} characters"
            return False
        if self._left_s <= 0.001:
            raise _GivenUp(DEADLINE)
        reply = self._ask({"ask": ask, "gold": gold, "answer": answer}, self._left_s)
        if why := reply.get("given_up"):
            raise _GivenUp(why)
        self._left_s -= reply["seconds"]
        self.detail = reply["detail"] or self.detail
        return reply["passed"]


class _Child:
    """The process of answer_process.py, ready to compare. RuntimeError if it cannot start, Lost if it ended first."""

    def __init__(self):
        # -P: the folder of the script stays off the import path, where its names (units, latex) would hide packages.
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
        self._requests = self._process.stdin
        self._replies = self._process.stdout
        try:
            why = receive(self._replies.fileno(), START_TIMEOUT_S).get("error")
        except (TimeoutError, EOFError) as e:
            self.kill()
            raise Lost(f"the process that compares answers ended before it began ({type(e).__name__})") from e
        if why:
            self.kill()
            raise RuntimeError(f"the process that compares answers did not start ({why}): is math-verify installed?")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict, timeout_s: float) -> dict:
        """The child's reply. TimeoutError, EOFError or OSError when it is stuck or dead, and then of no more use."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        return receive(self._replies.fileno(), timeout_s + GRACE_S)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._replies.close()


def _expected(answer: str) -> str:
    several = boxes(answer)
    if several and (several.joined or len(answer) <= MAX_SHORT_CHARS):
        return several.together
    boxed = last_boxed(answer)
    return answer if boxed is None else boxed


def _strings(*sides: str | list[str]) -> list[str]:
    return [s for side in sides for s in ([side] if isinstance(side, str) else side)]


def _feedback(extracted: str, detail: str) -> str:
    """What a refiner may be told: never the expected answer."""
    if not extracted:
        return {EMPTY: "The response is empty.", NO_STATEMENT: "No final answer was found."}.get(
            detail, r"No final answer in \boxed{} was found."
        )
    cut = "…" if len(extracted) > MAX_FEEDBACK_CHARS else ""
    return f"The final answer that was found is: {extracted[:MAX_FEEDBACK_CHARS]}{cut}"


def _printable(text: str) -> str:
    """Control characters and lone surrogates, which neither Arrow nor a terminal takes, become U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)
