"""What a judge is asked about a response, as token ids of its own chat template.

    problem, its reference, a response  ->  JudgePrompts.of()  ->  JudgePrompt: ids, how much of the response was cut

- The response is hostile: it may spell the end of a turn, a verdict, or the end of the place where it stands. It is
  inserted as plain text (`layouts`), so it opens and closes no turn. Before and after it stands a line with a mark,
  which is a digest of the response itself. So no response can hold its own mark.
- The problem and its reference come before the response. Prompts about one problem begin alike, and an engine reads
  that part once.
- A response that is too long for the context is cut in its middle, since its answer mostly stands at its end. The place
  is marked. Neither the problem nor its reference is cut: where they leave room for less than LEAST_SHOWN of the
  response, the judge is not asked.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from trd_ray.config import JudgeConfig
from trd_ray.layouts import Layouts, PlainTokens, parse, turn_slot
from trd_ray.views import said_as_text, said_before
from trd_ray.wordings import JUDGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_SHOWN = 0.25  # of the tokens of a response
NO_REFERENCE = "(There is none.)"


class TooLongForJudge(ValueError):
    """Problem, reference and instructions leave no room for a part of the response that could be judged."""


@dataclass(frozen=True)
class JudgePrompt:
    ids: list[int]
    cut_tokens: int = 0  # left out of the middle of the response


class JudgePrompts:
    """The prompts of one judge. Raises UserError for a wording or a chat template that cannot be used."""

    def __init__(self, config: JudgeConfig, tokenizer: "PreTrainedTokenizerBase", context: int):
        """`context` is how many tokens prompt and verdict may take together."""
        self.context = context
        self.response_tokens = config.response_tokens_in(context)
        self._tokens = PlainTokens(tokenizer)
        system = None if config.system is None else parse("judge.system", config.system, "")
        self._layouts = {
            has_reference: Layouts(
                tokenizer, "judge", _words(config, has_reference), system, config.chat_template_kwargs, said_as_text
            )
            for has_reference in JUDGES
        }

    @property
    def room(self) -> int:
        """Tokens that the instructions leave for a problem, its reference and a response."""
        most = max(layouts.of(()).tokens for layouts in self._layouts.values())
        return self.context - self.response_tokens - most - len(self._tokens.of_text("".join(fence(""))))

    def of(self, problem: dict[str, Any], text: str) -> JudgePrompt:
        """The prompt about a response to a row of rows.PROBLEM. Raises TooLongForJudge."""
        said = said_before(problem.get("turns"))
        reference = shown_reference(problem)
        layout = self._layouts[bool(reference)].of(said.roles)
        begin, end = (self._tokens.of_text(part) for part in fence(text))
        inserted = {turn_slot(number): self._tokens.of_text(turn) for number, turn in enumerate(said.texts)}
        inserted["problem"] = self._tokens.of_text(problem["problem"])
        if "reference" in layout.slots:
            inserted["reference"] = self._tokens.of_text(reference or NO_REFERENCE)
        bare = layout.tokens + len(begin) + len(end) + sum(map(len, inserted.values()))
        shown, cut = self._shown(self._tokens.of_text(text), self.context - self.response_tokens - bare)
        inserted["response"] = [*begin, *shown, *end]
        return JudgePrompt(layout.fill(inserted), cut)

    def _shown(self, ids: list[int], room: int) -> tuple[list[int], int]:
        """The response as it is shown, and how many of its tokens are left out."""
        if len(ids) <= room:
            return ids, 0
        told = self._tokens.of_text(f"\n[{len(ids)} tokens in all: the middle of the response is left out here]\n")
        kept = room - len(told)
        if kept < max(2, LEAST_SHOWN * len(ids)):
            raise TooLongForJudge(
                f"the judge's context of {self.context} tokens has room for {max(0, kept)} of the response's "
                f"{len(ids)}: raise judge.max_model_len, or lower judge.max_response_tokens or "
                "sampler.max_response_tokens"
            )
        tail = kept // 2
        return [*ids[: kept - tail], *told, *ids[-tail:]], len(ids) - kept


def _words(config: JudgeConfig, has_reference: bool) -> str:
    """The wording with sentinels for rows with or without a reference; a wording of the recipe's own is for both."""
    if config.prompt is None:
        return parse("judge.prompt", JUDGES[has_reference], JUDGES[has_reference])
    return parse("judge.prompt", config.prompt, JUDGES[True], optional=("reference",))


def fence(text: str) -> tuple[str, str]:
    """What stands before and after a response. Both hold a mark that the response cannot hold."""
    mark = blake2b(text.encode(), digest_size=8).hexdigest()
    while mark in text:
        mark = blake2b((mark + text).encode(), digest_size=8).hexdigest()
    return (
        f"The response begins after this line and ends before the next line with the mark {mark}.\n",
        f"\nThe response has ended: {mark}.",
    )


def shown_reference(problem: dict[str, Any]) -> str:
    """The reference with the answer, where that does not stand in it; "" where there is neither."""
    reference, answer = (str(problem.get(name) or "").strip() for name in ("reference", "answer"))
    if not reference or not answer or answer in reference:
        return reference or answer
    return f"{reference}\n\nAnswer: {answer}"
