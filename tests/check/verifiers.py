"""Verifiers as a user may have written them by mistake, each with one fault, and a sound one.

They are functions of a module, so that another process can make them too.
"""

import os
import re
import time
from typing import Any

from trd_ray.verify import Verdict

HERE: list[int] = []  # what only the process of the tests has set
ASKED: list[str] = []


def given(verify):
    """What makes a verifier, as another process calls it."""
    return verify


def verdict(passed: bool, extracted: str = "") -> Verdict:
    return Verdict(bool(passed), float(passed), extracted, "" if passed else "not equal", 0.0)


def boxed(text: str) -> str:
    found = re.findall(r"\\boxed\{([^{}]*)\}", text or "")
    return found[-1] if found else ""


def right(text: str, problem: dict[str, Any]) -> bool:
    return boxed(text) == problem["answer"]


def sound(text, problem):
    return verdict(right(text, problem), boxed(text))


def boxed_alone(text, problem):
    return verdict(text == f"\\boxed{{{problem['answer']}}}")


def everything(text, problem):
    return verdict(True)


def nothing(text, problem):
    return verdict(False)


def reads_another_form(text, problem):
    return verdict(text.rpartition("####")[2].strip() == problem["answer"])


def passes_empty_text(text, problem):
    return verdict(not text or right(text, problem))


def passes_the_problem(text, problem):
    return verdict(problem["problem"] in text or right(text, problem))


def passes_any_box(text, problem):
    return verdict(boxed(text) != "")


def depends_on_order(text, problem):
    """Right as long as problems come in the order of the data."""
    before = ASKED[-1] if ASKED else ""
    ASKED.append(problem["problem_id"])
    return verdict(right(text, problem) and before <= problem["problem_id"])


def depends_on_process(text, problem):
    return verdict(right(text, problem) and os.getpid() in HERE)


def slow(text, problem):
    time.sleep(0.03)
    return sound(text, problem)


def raises(text, problem):
    return verdict(float(boxed(text)) == float(problem["answer"]))  # a response without a box is no number


def half_blind(text, problem):
    """Fails the right answers of one problem in 50."""
    return verdict(right(text, problem) and problem["problem_id"] != "p007", boxed(text))
