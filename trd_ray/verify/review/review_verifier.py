"""`verify.function: review`: a person judges, so a verdict is looked up among those that were given, or waited for.

    text, problem  ->  ReviewVerifier  ->  the person's verdict, or one that says what is awaited

Where responses are verified while they are made, nothing was given yet. The run that goes on settles what waits (see
`trd_ray.verify.review.settle`).
"""

from collections.abc import Mapping

from trd_ray.verify.review.given_verdicts import PersonsVerdict, key_of
from trd_ray.verify.verdict import EMPTY, Awaited, Verdict, waiting

BY_A_PERSON = "a person's verdict"
MAX_EXTRACTED_CHARS = 8000

Given = Mapping[str, PersonsVerdict]  # by key_of(problem_id, text)


class ReviewVerifier:
    """Any thread may call it. A response without text waits for nobody: it does not pass."""

    def __init__(self, given: Given | None = None, pass_at: float = 1.0):
        """`pass_at` is the score with which a response passes where a person gives a score alone."""
        self._given = given or {}
        self._pass_at = pass_at

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        text = text or ""
        if not text.strip():
            return Verdict(False, 0.0, "", EMPTY, 0.0)
        said = self._given.get(key_of(problem["problem_id"], text))
        if said is None or said.withdrawn:
            return waiting(Awaited(self._pass_at))
        score = float(bool(said.passed)) if said.score is None else said.score
        passed = score >= self._pass_at if said.passed is None else said.passed
        detail = f"{BY_A_PERSON}: {said.reviewer}" if said.reviewer else BY_A_PERSON
        judged = text.strip()[:MAX_EXTRACTED_CHARS].encode("utf-8", "replace").decode()
        return Verdict(passed, score, judged, detail, 0.0, said.feedback)

    def close(self) -> None:
        """Nothing is behind it."""
