"""A prompt's wording under a chat template, rendered once: fixed token ids, and slots for what each row brings.

    wording with sentinels, chat template      ->  Layouts      ->  a Layout for each sequence of turns before a problem
    Layout, token ids of the inserted texts    ->  fill()       ->  token ids of the prompt
    a text of the data, an attempt's ids       ->  PlainTokens  ->  ids of which none is special

- A chat template is rendered with a sentinel in place of each inserted text. So it is rendered once for all rows that
  have no turns, and once for each sequence of roles that the turns of a row have.
- The fixed texts between the sentinels are tokenised once. An inserted text is tokenised on its own, as plain text, so
  no problem and no turn can open or close a turn. SentencePiece, which by default puts a space before every text, puts
  one there.

`views` words the prompts. No other module knows a chat template.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trd_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# {name} is a placeholder and {{name}} the literal text {name}. All other braces are plain text: \boxed{}, \frac{1}{x}
_PLACEHOLDER = re.compile(r"\{\{([a-z_]{2,})\}\}|\{([a-z_]{2,})\}")
_SENTINEL = "trd8c1fslot{}slot8c1fdrt"
_SLOTS = re.compile(_SENTINEL.format(r"(problem|reference|attempt|response|details|turn\d+)"))

Ids = Sequence[int] | np.ndarray


def sentinel(slot: str) -> str:
    return _SENTINEL.format(slot)


def turn_slot(number: int) -> str:
    """The slot of a turn before the problem, counted from 0."""
    return f"turn{number}"


class Layouts:
    """One view's wording: a layout for rows that only ask, and one for each sequence of turns before the problem."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        who: str,
        words: str,
        system: str | None,
        kwargs: dict[str, Any],
        as_text: Callable[[Sequence[str]], str] | None = None,
    ):
        """With `as_text` the turns are no messages: what it makes of their roles stands before the problem.

        Raises UserError for a chat template that cannot show the wording, as `of` does for one that cannot show turns.
        """
        self._tokenizer = tokenizer
        self._who = who
        self._words = words
        self._system = system
        self._kwargs = kwargs
        self._as_text = as_text
        self._made: dict[tuple[str, ...], Layout] = {(): self._make(())}

    def of(self, roles: tuple[str, ...]) -> "Layout":
        """The layout for rows with turns of these roles, () for none."""
        if roles not in self._made:
            self._made[roles] = self._make(roles)
        return self._made[roles]

    def _make(self, roles: tuple[str, ...]) -> "Layout":
        words = self._words
        turns = []
        if roles and self._as_text:
            words = words.replace(sentinel("problem"), self._as_text(roles) + sentinel("problem"))
        else:
            turns = [{"role": role, "content": sentinel(turn_slot(n))} for n, role in enumerate(roles)]
        # A conversation's own system turn stands in place of prompts.system.
        system = None if "system" in roles else self._system
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [*turns, {"role": "user", "content": words}]
        shown = "a user message" if system is None else "a system and a user message (prompts.system is set)"
        if turns:
            shown = f"the messages that rows of the data have ({', '.join(one['role'] for one in messages)})"
        text = rendered(self._tokenizer, self._who, messages, shown, self._kwargs, add_generation_prompt=True)
        self._require_all(text, messages, roles)
        return Layout(self._tokenizer, text)

    def _require_all(self, text: str, messages: list[dict[str, str]], roles: Sequence[str]) -> None:
        """Refuse a template that does not show every inserted text exactly once."""
        shown = _SLOTS.findall(text)
        wanted = [slot for message in messages for slot in _SLOTS.findall(message["content"])]
        if sorted(shown) == sorted(wanted):
            return
        lost = next((role for n, role in enumerate(roles) if shown.count(turn_slot(n)) != 1), None)
        if lost is not None:
            raise UserError(
                f"the {self._who}'s chat template does not show the {lost} turn of a conversation exactly once, and "
                f"rows of the data have one: use a tokenizer whose chat_template shows every turn, or take the {lost} "
                "turns out of the data"
            )
        raise UserError(
            f"the {self._who}'s chat template does not show what the user writes exactly once and unchanged: "
            "use a tokenizer whose chat_template passes the content of a message on as it is"
        )


class Layout:
    """A rendered chat template: token ids of the fixed texts, and the slots between them, one fewer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", rendered: str):
        self.slots: list[str] = _SLOTS.findall(rendered)
        self.fixed: list[list[int]] = [
            tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids
            for text in _SLOTS.split(rendered)[::2]
        ]
        self.tokens = sum(map(len, self.fixed))

    def fill(self, inserted: Mapping[str, Sequence[int]]) -> list[int]:
        ids = list(self.fixed[0])
        for slot, fixed in zip(self.slots, self.fixed[1:], strict=True):
            ids += inserted[slot]
            ids += fixed
        return ids


def turn_end(tokenizer: "PreTrainedTokenizerBase", who: str, kwargs: dict[str, Any]) -> list[int]:
    """What the chat template puts after an answer, without white space before it. Raises UserError for nothing."""
    answer = "an-answer-8c1f"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    text = rendered(tokenizer, who, messages, "a question and its answer", kwargs)
    after = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False).input_ids
    if not after:
        raise UserError(
            f"the {who}'s chat template puts nothing after an answer, so generation would never learn to end: let "
            "the template end an assistant's turn with the model's eos"
        )
    return after


class PlainTokens:
    """Token ids to insert into a view. None is special, whatever a text spells or a model sampled."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._special = frozenset([*tokenizer.all_special_ids, *added])

    def of_text(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        # A word-level vocabulary holds its special tokens as words, which split_special_tokens does not prevent.
        # The unknown token is special by name only: it stands for text.
        return [i for i in ids if i not in self._special or i == self._tokenizer.unk_token_id]

    def to_text(self, ids: Ids, skip_special: bool = False) -> str:
        text = self._tokenizer.decode(np.asarray(ids, np.int32).tolist(), skip_special_tokens=skip_special)
        assert isinstance(text, str)  # of one sequence
        return text

    def of_attempt(self, ids: Ids) -> list[int]:
        # Ids past the tokenizer's end are rows that pad the embedding. They stand for no text.
        return [i for i in np.asarray(ids, np.int32).tolist() if i < self._size and i not in self._special]


def parse(key: str, text: str, default: str, optional: Sequence[str] = ("feedback",)) -> str:
    """The wording at this key with sentinels in place of its placeholders, which are those of its default.

    A wording holds each of them once. The `optional` ones may be left out.
    """
    known = sorted(name for _, name in _PLACEHOLDER.findall(default))
    found: list[str] = []

    def replace(match: re.Match) -> str:
        literal, name = match.groups()
        if literal:
            return f"{{{literal}}}"
        if name not in known:
            raise UserError(
                f"{key} holds the unknown placeholder {{{name}}} (known in this wording: "
                f"{', '.join(f'{{{k}}}' for k in known) or 'none'}); write {{{{{name}}}}} to mean the text itself"
            )
        found.append(name)
        return sentinel(name)

    parsed = _PLACEHOLDER.sub(replace, text)
    for name in known:
        if found.count(name) not in ((0, 1) if name in optional else (1,)):
            raise UserError(
                f"{key} must hold the placeholder {{{name}}} exactly once, but holds it {found.count(name)} times"
            )
    return parsed


def rendered(
    tokenizer: "PreTrainedTokenizerBase",
    who: str,
    messages: list[dict[str, str]],
    shown: str,
    kwargs: dict[str, Any],
    add_generation_prompt: bool = False,
) -> str:
    """The messages as the chat template writes them. Raises UserError, which calls them `shown`, if it cannot."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
        )
    except Exception as e:  # a template is a program: it may raise anything
        raise UserError(
            f"the {who}'s chat template cannot render {shown}: {' '.join(str(e).split())[:300]}; "
            f"check the tokenizer's chat_template and {who}.chat_template_kwargs"
        ) from e
    assert isinstance(text, str)  # tokenize=False promises it
    return text
