"""Verifiers: a response and its problem enter, a verdict leaves.

    text, problem without tests  ->  MathVerifier  ->  Verdict(passed, score, extracted, detail, seconds, feedback)
    text, problem with tests     ->  CodeVerifier  ->  the same
    text, item of reasoning_gym  ->  GymVerifier   ->  the same

A verifier never raises on what a model wrote. Empty, endless and hostile text all end in a verdict by the deadline. It
raises Lost where this machine does not start what judges, and BadRow where a problem's own tests cannot be read.
"""

from functools import lru_cache

from trd_ray.config import VerifyConfig
from trd_ray.verify.gym.gym_verifier import GymVerifier, entry_of
from trd_ray.verify.verdict import EMPTY, UNJUDGED, Verdict, Verifier, unjudged

__all__ = ["EMPTY", "UNJUDGED", "Verdict", "Verifier", "unjudged", "verifier", "verifier_of_json"]


def verifier(config: VerifyConfig) -> Verifier:
    """The verifier of a recipe. One process makes one and keeps it, so call this inside the task that verifies."""
    return verifier_of_json(config.model_dump_json())


@lru_cache(maxsize=8)
def verifier_of_json(config: str) -> Verifier:
    """The same of a VerifyConfig as JSON, in which form it is quickest to send to a task."""
    return _ByTests(VerifyConfig.model_validate_json(config))


class _ByTests:
    """Sends a problem with tests to the code verifier, an item of reasoning_gym to its scorer, any other to the math
    verifier; makes each when needed.
    """

    def __init__(self, config: VerifyConfig):
        self._config = config
        self._made: dict[str, Verifier] = {}

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        return self._verifier(_task(problem))(text, problem)

    def close(self) -> None:
        for made in self._made.values():
            made.close()

    def _verifier(self, task: str) -> Verifier:
        # Two threads that race make two, of which one is dropped unused: both start their processes lazily.
        if task not in self._made:
            if task == "code":
                from trd_ray.verify.code.code_verifier import CodeVerifier

                made = CodeVerifier(self._config)
            elif task == "gym":
                made = GymVerifier(self._config.timeout_s)
            else:
                from trd_ray.verify.math.math_verifier import MathVerifier

                made = MathVerifier(self._config.timeout_s, self._config.answer_in_prose)
            self._made.setdefault(task, made)
        return self._made[task]


def _task(problem: dict) -> str:
    if problem.get("tests"):
        return "code"
    return "gym" if entry_of(problem) else "math"
