r"""Is the answer of a response, the last \boxed{...}, the one that the problem expects?

    text -> last_boxed -> read ----.
                                   |-> Equality -> verdict, most of them here
    problem["answer"]  -> read ----'        `-> a formula: one JSON line ==pipe==> answer_process (math-verify)

Comparing what a model wrote can take for ever (`10^{10^{10}}`), use all memory or overflow the stack. math-verify's own
deadline needs SIGALRM in a main thread. So a child process compares, and it is kept warm:

- It limits its own memory.
- When the process that compares misses the deadline or dies, the child replaces it, and says so of the comparison.
- `trd_ray.verify.child_process` says what a death of the process tells about the answer.
"""

import time
import unicodedata
from pathlib import Path

from trd_ray.verify.child_process import DEADLINE, Asking
from trd_ray.verify.math.answer import last_boxed, last_formula, stated
from trd_ray.verify.math.boxes import Boxes, boxes
from trd_ray.verify.math.equal import Equality
from trd_ray.verify.math.forms import Group, TooDeep, read, spelling
from trd_ray.verify.math.second_reading import has_decimal_commas, second_reading
from trd_ray.verify.verdict import EMPTY, Verdict

MAX_ANSWER_CHARS = 2000  # what is longer is no answer, and only costs the parser time
MAX_SHORT_CHARS = 200  # of an expected answer that is no solution, all of whose boxes are the answer
MAX_FORMULA_CHARS = 600  # of one part; a longer one is a model that repeats itself, and takes the parser seconds
MAX_FEEDBACK_CHARS = 200  # how much of the answer a feedback quotes
NO_STATEMENT = "no stated answer"


class MathVerifier(Asking):
    r"""Compares the last `\boxed{...}` of a response with `problem["answer"]`, within `timeout_s` of comparing.

    `answer_in_prose`: a response without any box may also state it in prose ("The answer is 42.", "#### 18").
    `answer_in_formula`: where it states none either, its last formula is the answer.
    """

    def __init__(self, timeout_s: float, answer_in_prose: bool = False, answer_in_formula: bool = False):
        super().__init__(Path(__file__).with_name("answer_process.py"), "compares", "compared", "math-verify")
        self.timeout_s = timeout_s
        self.answer_in_prose = answer_in_prose
        self.answer_in_formula = answer_in_formula

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        passed, extracted, detail = self._judge(text, problem)
        feedback = _feedback(extracted, detail)
        return Verdict(passed, float(passed), extracted, detail, time.monotonic() - start, feedback)

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
