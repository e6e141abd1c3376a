"""A function of the user's as a verifier: each call in a process of its own, within a deadline.

    text, problem  ->  a free Caller (calling.py)  ->  reply  ->  Verdict, by verify.pass_at

What may happen to a call, and what is done then:

- the deadline passes: the process is killed, and the response does not pass;
- the function raises: the response does not pass, and the detail says what was raised;
- the process ends (a crash, os._exit) or has no memory left: an earlier call may be the reason, so the call is made
  once more, in a new process. If that ends too, the response does not pass. If it was killed from outside, it is
  UNJUDGED;
- the function gives no score, or something that is none: UNJUDGED. Nobody should train on that.

Processes are forked from one that has imported the function, so a new one takes milliseconds.
"""

import contextlib
import signal
import threading
import time
from collections import deque
from pathlib import PurePath
from typing import Any

from trd_ray.config import NamedFunction, VerifyConfig, own_parts
from trd_ray.errors import Lost, UserError
from trd_ray.verify.own.calling import Caller, CannotStart, Importer, ending
from trd_ray.verify.own.returned import printable
from trd_ray.verify.own.shape import CallShape
from trd_ray.verify.verdict import EMPTY, IDS, Verdict, unjudged

NO_SCORE = "the function gave no score"
MAX_EXTRACTED_CHARS = 200  # of the response, where the function says nothing of what it judged
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
# What of a problem a function may see: all but the tests, which are for the code verifier, and no text.
_UNSEEN = "tests"


class OwnVerifier:
    """`key` is the key of the recipe that names the function, for sentences. Raises UserError where it cannot start."""

    def __init__(self, config: VerifyConfig, named: NamedFunction, key: str = "verify.function"):
        place, _ = own_parts(named.function)
        self._asked = {
            "function": named.function,
            "source": config.sources.get(place),
            "beside": beside(place, config.sources),
            "arguments": named.arguments,
            "completions": config.completions,
            "columns": config.columns,
            "memory_bytes": int(config.call_memory_gib * 2**30),
        }
        if place.endswith(".py") and place not in config.sources:
            raise UserError(f"{key} names {place}, but verify.sources has no text of it: read the recipe with trd")
        self.named = named
        self.called = f"{key} {named.function}"
        self.deadline_s = config.deadline_s
        self.pass_at = config.pass_at if named.pass_at is None else named.pass_at
        self._slots = threading.Semaphore(config.concurrency)
        self._lock = threading.Lock()
        self._importer: Importer | None = None  # started by the first call
        self._idle: deque[Caller] = deque()

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        if not isinstance(text, str):
            return Verdict(False, 0.0, "", EMPTY, 0.0, "The response is empty.")
        with self._slots:
            reply = self.reply(text, problem)
        return self._verdict(text, reply, time.monotonic() - start)

    def reply(self, text: str, problem: dict) -> dict[str, Any]:
        """What call_process.py says of one call, or {"late"} or {"ended"}, how its process ended."""
        seen = {name: value for name, value in problem.items() if name not in (_UNSEEN, IDS)}
        if (ids := problem.get(IDS, {}).get(text)) is not None:
            seen[IDS] = [int(i) for i in ids]
        question = {"text": text, "problem": seen}
        reply: dict[str, Any] = {}
        for _ in range(2):
            caller = self._caller()
            try:
                reply = caller.ask(question, self.deadline_s)
            except TimeoutError:
                self._end(caller)
                return {"late": True}
            except (EOFError, OSError):
                reply = {"ended": self._end(caller)}
                continue
            if "memory" not in reply:
                self._idle.append(caller)
                return reply
            self._end(caller)
        return reply

    @property
    def shape(self) -> CallShape:
        return self._started().shape

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.popleft().kill()
            if self._importer:
                self._importer.close()
                self._importer = None

    def _caller(self) -> Caller:
        """A process that waits for a call, or a new one."""
        try:
            importer = self._started()  # if it had died, those that wait are dead with it
            with contextlib.suppress(IndexError):
                return self._idle.popleft()
            try:
                return importer.fork()
            except Lost:
                return self._started().fork()
        except CannotStart as e:
            raise self._refusal(e) from e

    def _started(self) -> Importer:
        with self._lock:
            if self._importer is None or not self._importer.alive:
                self._idle.clear()  # they end with the importer
                try:
                    try:
                        self._importer = Importer(self._asked)
                    except Lost:
                        self._importer = Importer(self._asked)
                except CannotStart as e:
                    raise self._refusal(e) from e
            return self._importer

    def _refusal(self, e: CannotStart) -> UserError:
        return UserError(f"{self.called} {e}")

    def _end(self, caller: Caller) -> int | None:
        importer = self._importer
        if importer is None:
            caller.kill()
            return None
        return importer.end(caller)

    def _verdict(self, text: str, reply: dict[str, Any], seconds: float) -> Verdict:
        extracted = reply.get("extracted") or _begins(text)
        if "ended" in reply and (reply["ended"] in _FROM_OUTSIDE or reply["ended"] is None):
            return unjudged("the process that calls the function was killed twice", seconds)
        if "wrong" in reply:
            return unjudged(f"the function {reply['wrong']}", seconds)
        if "score" not in reply:
            return Verdict(False, 0.0, extracted, self.failing(reply), seconds)
        score = reply["score"]
        if score is None:
            return unjudged(NO_SCORE, seconds)
        passed = score >= self.pass_at if reply["passed"] is None else reply["passed"]
        below = "" if passed else f"score {score:g}" if text.strip() else EMPTY
        return Verdict(passed, score, extracted, reply["detail"] or below, seconds, reply["feedback"])

    def failing(self, reply: dict[str, Any]) -> str:
        """Why a call came to no score, for the detail of a verdict and for whoever starts the run."""
        if "late" in reply:
            return f"the function took more than {self.deadline_s:g} s"
        if "raised" in reply:
            return f"the function raised {reply['raised']}"
        if "memory" in reply:
            return "the function took more memory than verify.call_memory_gib"
        return f"the function ended its process twice ({ending(reply['ended'])})"


def beside(place: str, sources: dict[str, str]) -> dict[str, str]:
    """Of the texts that a recipe holds, those that lie in the folder of a function's file or below it, by their paths
    from there.
    """
    folder = PurePath(place).parent
    if not place.endswith(".py"):
        return {}
    files = {PurePath(one): text for one, text in sources.items() if one != place}
    return {one.relative_to(folder).as_posix(): text for one, text in files.items() if one.is_relative_to(folder)}


def _begins(text: str) -> str:
    """How a response begins: what was judged, where the function does not say."""
    return printable(text.strip()[:MAX_EXTRACTED_CHARS])
