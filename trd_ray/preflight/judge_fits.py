"""Whether a judge can be asked as the recipe says, before any engine starts.

recipe, ModelFacts, tokenizer of the judge  ->  judge_fits()  ->  a note on how it is asked, or a UserError
"""

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trd_ray.config import Recipe
from trd_ray.errors import Faults, UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight.lengths import require_positions
from trd_ray.verify.judge.judge_prompt import JudgePrompts, TooLongForJudge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_ROOM = 0.25  # of the context, for a problem, its reference and a response


def context_of(recipe: Recipe, judge: ModelFacts) -> int:
    """Tokens that a judge's prompt and its verdict may take together."""
    return min(recipe.judge.max_model_len or judge.max_positions, judge.max_positions)


def judge_fits(
    recipe: Recipe, facts: ModelFacts, tokenizer: "PreTrainedTokenizerBase", rows: Iterable[dict[str, Any]] = ()
) -> str:
    """What `--dry-run` says of the judge. `rows` are some of rows.PROBLEM that it will be asked about."""
    judge, context = recipe.judge, context_of(recipe, facts)
    faults = Faults()
    with faults:
        require_positions("judge", judge.max_model_len, facts)
    if not tokenizer.chat_template:
        faults.add(
            f"the judge's tokenizer ({facts.path}) has no chat template: set judge.path to an instruct model, or put a "
            "chat_template.jinja next to its tokenizer.json"
        )
    faults.require_none()
    if "enable_thinking" in str(tokenizer.chat_template) and "enable_thinking" not in judge.chat_template_kwargs:
        faults.add(
            "the chat template has a thinking mode, and judge.chat_template_kwargs does not say whether it is used: "
            "set judge.chat_template_kwargs={enable_thinking: true}, or false"
        )
    room, left = 0, []
    with faults:
        prompts = JudgePrompts(judge, tokenizer, context)
        room = prompts.room
        if room < LEAST_ROOM * context:
            raise UserError(
                f"the judge has a context of {context} tokens, of which its instructions and its verdict "
                f"({prompts.response_tokens}) leave {max(0, room)} for a problem and a response: raise "
                "judge.max_model_len, or lower judge.max_response_tokens, or set a shorter judge.prompt"
            )
        left = _left(prompts, rows)
    faults.require_none()
    median = round(statistics.median(left)) if left else room
    full = sum(not one for one in left)
    return (
        f"the judge: {judge.path} on the pool judge, asked at temperature {judge.temperature:g} for at most "
        f"{prompts.response_tokens} tokens, {judge.tries} tries; its last line must be Verdict: pass, Verdict: fail, "
        f"or Verdict: and a number from 0 to 1. Of its context of {context} tokens {median} are left for a response, "
        "and a longer one is shown without its middle"
        + (f"; {full} of {len(left)} problems leave no room, and are not judged" if full else "")
    )


def _left(prompts: JudgePrompts, rows: Iterable[dict[str, Any]]) -> list[int]:
    """Tokens that each problem and its reference leave for a response."""
    found = []
    for row in rows:
        try:
            found.append(prompts.context - prompts.response_tokens - len(prompts.of(row, "").ids))
        except TooLongForJudge:
            found.append(0)
    return found
