"""A model as a verifier: it is asked about a response, and its last line is the verdict.

    text, problem -> JudgePrompts.of -> ask, until it gives a verdict, `judge.tries` times -> read_verdict -> Verdict

Whoever makes a JudgeVerifier says how a prompt reaches the model: `ask` blocks until it is answered, and any thread may
call it. Here nothing knows engines (trd_ray/stream/judging.py does).

What may happen, and what is done then:

- the text has no verdict: the judge is asked again, with another seed and some temperature, since at 0 it would write
  the same. After the last try the response is UNJUDGED;
- no answer comes within judge.start_timeout_s and all tries' judge.request_timeout_s: UNJUDGED;
- the engine takes no such request, or the response does not fit: UNJUDGED;
- the pool has failed: `ask` raises what ends the run.
"""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from trd_ray.config import JudgeConfig
from trd_ray.errors import UserError
from trd_ray.verify.judge.judge_prompt import JudgePrompts, TooLongForJudge
from trd_ray.verify.judge.judge_says import ENDED, JudgeSaid, read_verdict
from trd_ray.verify.verdict import EMPTY, Verdict, unjudged

AT_ONCE = 256  # calls of a task: each is a thread that waits
RETRY_TEMPERATURE = 0.6
MAX_BEGIN_CHARS = 200  # of the response, as the text that was judged
MAX_DETAIL_CHARS = 200  # of the reasons


@dataclass(frozen=True)
class ToJudge:
    """One request to the judge's model."""

    prompt_ids: list[int]
    seed: int
    temperature: float
    max_tokens: int
    prefix: int  # equal for prompts that begin alike


@dataclass(frozen=True)
class Written:
    """What the model wrote."""

    text: str
    finish: str = ENDED
    refused: str = ""  # why the engine takes no such request


AskJudge = Callable[[ToJudge, float], Written]  # the second is its deadline in seconds: raises TimeoutError after it


class JudgeVerifier:
    at_once = AT_ONCE

    def __init__(self, config: JudgeConfig, prompts: JudgePrompts, ask: AskJudge, end: Callable[[], object]):
        """`end` is called by `close`."""
        self._config = config
        self._prompts = prompts
        self._ask = ask
        self._end = end

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        start = time.monotonic()
        if not isinstance(text, str) or not text.strip():
            return Verdict(False, 0.0, "", EMPTY, 0.0, "The response is empty.")
        text = text.encode("utf-8", "replace").decode()
        try:
            prompt = self._prompts.of(problem, text)
        except TooLongForJudge as e:
            return unjudged(str(e), time.monotonic() - start)
        said = self._said(prompt.ids, text, str(problem.get("problem_id") or ""), start + self._config.verdict_s)
        seconds = time.monotonic() - start
        if said.score is None:
            return unjudged(said.why, seconds)
        cut = f"{prompt.cut_tokens} tokens of its middle were not shown; " if prompt.cut_tokens else ""
        passed = said.score >= 1
        reasons = " ".join(said.reasons.split())[:MAX_DETAIL_CHARS]
        detail = "" if passed and not cut else f"score {said.score:g} ({cut}{reasons})"
        begins = text.strip()[:MAX_BEGIN_CHARS]
        return Verdict(passed, said.score, begins, detail, seconds, said.reasons if self._config.feedback else "")

    def close(self) -> None:
        self._end()

    def _said(self, prompt_ids: list[int], text: str, problem_id: str, until: float) -> JudgeSaid:
        """What the judge says in the end; `until` is on the monotonic clock."""
        config, why = self._config, ""
        for number in range(config.tries):
            temperature = max(config.temperature, RETRY_TEMPERATURE) if number else config.temperature
            asked = ToJudge(
                prompt_ids, _seed(problem_id, text, number), temperature, self._prompts.response_tokens,
                zlib.crc32(problem_id.encode()),
            )  # fmt: skip
            try:
                written = self._ask(asked, until - time.monotonic())
            except TimeoutError:
                limit = "judge.start_timeout_s and judge.tries x judge.request_timeout_s"
                return JudgeSaid(None, why=f"the judge did not answer within {config.verdict_s:.0f} s: {limit}")
            if written.refused:
                return JudgeSaid(None, why=f"the judge's engine refused the request: {written.refused}")
            said = read_verdict(written.text, written.finish)
            if said.score is not None:
                return said
            why = said.why
        return JudgeSaid(None, why=f"the judge gave no verdict when asked {config.tries} times: {why}")


class NoEngines:
    """The judge where nothing starts engines."""

    def __call__(self, text: str | None, problem: dict) -> Verdict:
        raise UserError(
            "a verifier is the judge, which needs its engines: only trd train, trd refine and trd evaluate start them; "
            "leave the judge out of verify here"
        )

    def close(self) -> None:
        pass


def _seed(problem_id: str, text: str, number: int) -> int:
    """63 bits, equal in every process: a verdict does not depend on who asks, or when."""
    digest = blake2b(f"{number}:{problem_id}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
