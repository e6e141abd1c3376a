"""Does the family's own scorer give the answer of a response full marks?

    text -> answer_of: the last <answer>...</answer> -.
                                                      |-> ReasoningGym.score -> Verdict; it passes at 1.0 alone
    problem["extra"]["reasoning_gym"]: the entry -----'

The scorer runs in a process of its own, with a deadline (gym_process.py): what a model wrote is hostile, and scorers
evaluate it. Partial credit is kept as the score.
"""

import json
import math
import re
import time
from typing import Any

from trd_ray.errors import BadRow
from trd_ray.verify.gym.library import ReasoningGym
from trd_ray.verify.math.answer import last_boxed
from trd_ray.verify.verdict import EMPTY, Verdict

KEY = "reasoning_gym"  # of a problem's extra columns
NO_ANSWER = "no <answer> in the response"
MAX_ANSWER_CHARS = 20_000  # the boards and matrices of the largest items have a few thousand
MAX_FEEDBACK_CHARS = 200
PASS_AT = 1.0

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w+-]*\n(.*?)\n?```", re.DOTALL)


def entry_of(problem: dict[str, Any]) -> dict[str, Any] | None:
    """What a problem of reasoning_gym carries: family, config, index, answer and metadata. None for any other one."""
    extra = problem.get("extra")
    if not extra or f'"{KEY}"' not in extra:
        return None
    try:
        found = json.loads(extra).get(KEY)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) and {"family", "config", "metadata"} <= found.keys() else None


def answer_of(text: str) -> str | None:
    r"""The text in the last <answer>...</answer>; without one that in the last \boxed{}; None without either.

    A code fence or a box around the whole of it is taken off.
    """
    answer = None
    opened = -1
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag.end()
        elif opened >= 0:
            answer = text[opened : tag.start()]
            opened = -1
    if answer is None:
        return last_boxed(text)
    answer = answer.strip()
    if fenced := _FENCE.fullmatch(answer):
        answer = fenced[1]
    bare = answer.strip("$ \n")
    if bare.startswith("\\boxed{") and bare.endswith("}") and (boxed := last_boxed(bare)) is not None:
        answer = boxed
    return answer


class GymVerifier:
    """Scores the answer within `timeout_s`. Raises UserError where the library is missing."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._gym = ReasoningGym()

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        score, extracted, detail = self._judge(text, problem)
        feedback = _feedback(extracted, score)
        return Verdict(score >= PASS_AT, score, extracted, detail, time.monotonic() - start, feedback)

    def close(self) -> None:
        self._gym.close()

    def _judge(self, text: str | None, problem: dict) -> tuple[float, str, str]:
        found = entry_of(problem)
        if found is None:
            raise BadRow(f"the problem {problem.get('problem_id')} holds no item of reasoning_gym in its column extra")
        if not isinstance(text, str) or not text.strip():
            return 0.0, "", EMPTY
        answer = answer_of(text)
        if answer is None:
            return 0.0, "", NO_ANSWER
        answer = answer.strip().encode("utf-8", "replace").decode()  # a verdict is valid UTF-8
        if len(answer) > MAX_ANSWER_CHARS:
            return 0.0, f"{answer[:200]}…", f"answer of more than {MAX_ANSWER_CHARS} characters"
        entry = {"question": problem["problem"], "answer": found.get("answer"), "metadata": found["metadata"]}
        scored = self._gym.score(found["family"], found["config"], entry, answer, self.timeout_s)
        if scored.score is None:
            return 0.0, answer, scored.why
        score = min(1.0, max(0.0, scored.score)) if math.isfinite(scored.score) else 0.0
        return score, answer, "" if score >= PASS_AT else f"score {score:.2f}"


def _feedback(extracted: str, score: float) -> str:
    """What a refiner may be told: never the expected answer."""
    if not extracted:
        return "No final answer between <answer> and </answer> was found."
    cut = "…" if len(extracted) > MAX_FEEDBACK_CHARS else ""
    said = f"The final answer that was found is: {extracted[:MAX_FEEDBACK_CHARS]}{cut}"
    return f"{said}\nIts score is {score:.2f} of 1." if 0 < score < PASS_AT else said
