"""The way from a verifier task to the judge: its pool of engines, asked from the process that verifies.

    JudgeAt (keys, model, pool) --with the task--> judging_verifier() -> Chosen, whose judge asks the pool by a Client

A task makes many calls at once and waits for all of them, so a pool of any size is kept full by a few tasks. What a
judge's process needs besides the tokenizer is a client (trd_ray/engine/client.py): it is in a thread of its own, and
goes on where an engine dies, or the pool's process.

At shutdown the pool fails what waits in it. A task that is ended leaves its requests to the pool, which forgets them
(leases.py).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from trd_ray.config import JudgeConfig, VerifyConfig
from trd_ray.engine.client import Client
from trd_ray.engine.generations import Request
from trd_ray.models import tokenizer
from trd_ray.verify import Chosen
from trd_ray.verify.judge.judge_prompt import JudgePrompts
from trd_ray.verify.judge.judge_verifier import AT_ONCE, JudgeVerifier, ToJudge, Written


@dataclass(frozen=True)
class JudgeAt:
    """The judge of a run, as it travels to whoever verifies; plain data but for the pool's handle."""

    json: str  # a JudgeConfig
    path: str  # resolved
    context: int  # tokens that its prompt and its verdict may take together
    pool: Any
    verdict_s: float  # the longest that one verdict takes

    @classmethod
    def of(cls, config: JudgeConfig, path: str, context: int, pool: Any) -> "JudgeAt":
        return cls(config.model_dump_json(), path, context, pool, config.verdict_s)


class JudgingTask:
    """A task of Ray's that verifies, with the judge as one more argument."""

    def __init__(self, task: Any, judge: JudgeAt):
        self.task = task
        self.judge = judge

    def remote(self, *arguments: Any) -> Any:
        return self.task.remote(*arguments, judge=self.judge)


def judging_s(judge: JudgeAt | None, texts: int) -> float:
    """How long a judge may take for so many texts of one task."""
    return judge.verdict_s * math.ceil(texts / AT_ONCE) if judge else 0.0


@lru_cache(maxsize=8)
def judging_verifier(config: str, judge: JudgeAt) -> Chosen:
    """As trd_ray.verify.verifier_of_json, with a judge that has its engines."""
    return Chosen(VerifyConfig.model_validate_json(config), _at(judge))


def _at(judge: JudgeAt) -> JudgeVerifier:
    config = JudgeConfig.model_validate_json(judge.json)
    words = tokenizer(judge.path, config.revision, config.trust_remote_code)
    client = Client(judge.pool)

    def ask(asked: ToJudge, within_s: float) -> Written:
        request = Request(
            prompt_ids=np.asarray(asked.prompt_ids, np.int32),
            seed=asked.seed,
            temperature=asked.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=asked.max_tokens,
            prefix=asked.prefix,
        )
        answer = client.submit(request)
        try:
            [generation] = answer.result(max(0.0, within_s))
        except TimeoutError:
            answer.cancel()
            raise
        return Written(generation.text, generation.finish, generation.refused)

    return JudgeVerifier(config, JudgePrompts(config, words, judge.context), ask, client.close)
