"""The keys of the judge: a model of its own that says what a response is worth, on a pool of engines of its own.

    verify.function: judge, judge: {path: MODEL, replicas: 2}

The weights of a judge never change. It sees a problem, a reference where there is one, and a response, in the words of
`judge.prompt`, and its last line is the verdict (trd_ray/verify/judge).
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from trd_ray.config.effects import ENGINES, MACHINES, ROWS, VERDICTS
from trd_ray.config.rollout_keys import EngineConfig, ModelConfig
from trd_ray.config.verify_keys import VerifyConfig

MAX_RESPONSE_TOKENS = 2048


class JudgeConfig(EngineConfig, ModelConfig):
    """The model that judges, its engines, and how it is asked."""

    path: Annotated[str | None, ROWS, VERDICTS, ENGINES] = Field(
        default=None, description="the model that judges, where a verifier is `judge`; its weights never change"
    )
    request_timeout_s: Annotated[float, ENGINES, MACHINES] = Field(
        default=600, gt=0, description="longest one request may take, queueing included; a judge writes little"
    )
    prompt: Annotated[str | None, ROWS, VERDICTS] = Field(
        default=None,
        description="what it is asked, with {problem}, {response} and, where it is to see one, {reference}; "
        "@judge.md reads it from that file. Default: pass or fail (trd_ray/wordings.py)",
    )
    system: Annotated[str | None, ROWS, VERDICTS] = Field(default=None, description="a system turn before the prompt")
    temperature: Annotated[float, ROWS, VERDICTS] = Field(
        default=0.0, ge=0, le=2, description="of its first try; later ones have at least 0.6, so that they differ"
    )
    top_p: Annotated[float, ROWS, VERDICTS] = Field(default=1.0, gt=0, le=1)
    top_k: Annotated[int, ROWS, VERDICTS] = Field(default=0, ge=0, description="0: no limit")
    max_response_tokens: Annotated[int | None, ROWS, VERDICTS] = Field(
        default=None, ge=1, description="default: 2048, or half of its context where that is less"
    )
    tries: Annotated[int, ROWS, VERDICTS] = Field(
        default=3, ge=1, description="times that it is asked until it gives a verdict; after that there is none"
    )
    feedback: Annotated[bool, ROWS, VERDICTS] = Field(
        default=True,
        description="what it wrote before its verdict is the verdict's feedback, which refiner.feedback=details tells "
        "the refiner; false where a judge that sees the reference must not tell of it",
    )

    @property
    def verdict_s(self) -> float:
        """The longest that one verdict may take: the start of an engine, and every try."""
        return self.start_timeout_s + self.tries * self.request_timeout_s

    def response_tokens_in(self, context: int) -> int:
        """Tokens that it may write, in a context of so many."""
        return self.max_response_tokens or max(1, min(MAX_RESPONSE_TOKENS, context // 2))


def require_judge(judge: JudgeConfig, verify: VerifyConfig, of_sources: Iterable[str | None]) -> None:
    """Raise ValueError for a judge that nobody asks, and for one that is asked and has no model.

    `of_sources` are the verifiers that sources of data name.
    """
    asked = verify.names_judge or any(verify.is_judge(name) for name in of_sources if name)
    if asked and not judge.path:
        raise ValueError(
            "a verifier of the recipe is judge, but judge.path is empty: set judge.path to the model that judges"
        )
    if judge != JudgeConfig() and not asked:
        raise ValueError(
            "judge has keys, but no verifier of the recipe is judge: set verify.function=judge, name it in "
            "verify.functions, or leave judge out"
        )
