"""What an engine would accept of drafts that it copies from what it has read: y_o stands in the prompt of y_r.

    prompt ids, response ids, Lookup  ->  drafting()  ->  Drafting: passes of the model, tokens drafted and accepted

Prompt lookup (n-gram speculation): the longest run of the last tokens that stood before is looked up where it stood
first, and the `draft` tokens after it are proposed. One pass of the model checks them all, and gives one token of its
own behind those that hold. This is vLLM's `ngram` method.

Speculation is lossless, so counting on recorded responses is exact: a proposed token is accepted with the model's own
probability of it, which is how often the recorded token is that one.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lookup:
    shortest: int = 2  # tokens of a run that is looked up
    longest: int = 4
    draft: int = 5  # tokens proposed at a time


@dataclass(frozen=True)
class Drafting:
    tokens: int = 0
    passes: int = 0  # of the model; without drafts one a token
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "Drafting") -> "Drafting":
        return Drafting(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )

    @property
    def tokens_a_pass(self) -> float:
        """1 where nothing is accepted: by so much fewer passes the response needs."""
        return self.tokens / self.passes if self.passes else 1.0


def drafting(prompt: Sequence[int], response: Sequence[int], how: Lookup) -> Drafting:
    seen = _Runs(how)
    for token in prompt:
        seen.read(int(token))
    tokens, passes, drafted, accepted = len(response), 0, 0, 0
    at = 0
    while at < tokens:
        draft = seen.draft()[: tokens - at - 1]  # the last token is always the model's own
        holds = 0
        while holds < len(draft) and draft[holds] == response[at + holds]:
            holds += 1
        for token in response[at : at + holds + 1]:
            seen.read(int(token))
        at += holds + 1
        passes, drafted, accepted = passes + 1, drafted + len(draft), accepted + holds
    return Drafting(tokens, passes, drafted, accepted)


class _Runs:
    """The tokens read so far, and where each run of them ended first."""

    def __init__(self, how: Lookup):
        self.how = how
        self.tokens: list[int] = []
        self.first_end: dict[tuple[int, ...], int] = {}

    def read(self, token: int) -> None:
        self.tokens.append(token)
        end = len(self.tokens)
        for n in range(self.how.shortest, min(self.how.longest, end) + 1):
            self.first_end.setdefault(tuple(self.tokens[end - n :]), end)

    def draft(self) -> list[int]:
        end = len(self.tokens)
        for n in range(min(self.how.longest, end), self.how.shortest - 1, -1):
            stood = self.first_end[tuple(self.tokens[end - n :])]
            if stood < end:
                return self.tokens[stood : stood + self.how.draft]
        return []
