"""What a student of a miniature world believes about its secrets: some known, some half known, most others wrong."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Fact = TypeVar("Fact")
Meaning = TypeVar("Meaning")

# Shares of the facts that are known and half known. The rest is all but unknown.
KNOWN_SHARE = 0.45
HALF_KNOWN_SHARE = 0.30
# How probably the student recalls the truth.
KNOWN = 0.9
HALF_KNOWN = 0.4
UNKNOWN = 0.03


@dataclass(frozen=True)
class Beliefs(Generic[Fact, Meaning]):
    """Recalls the truth with a probability that depends on the fact, else a misconception, the same one each time."""

    truth: dict[Fact, Meaning]
    misconception: dict[Fact, Meaning]
    knows: dict[Fact, float]

    def recall(self, fact: Fact, rng: random.Random) -> Meaning:
        return (self.misconception if rng.random() >= self.knows[fact] else self.truth)[fact]


def certain(truth: dict[Fact, Meaning]) -> Beliefs[Fact, Meaning]:
    return Beliefs(truth, truth, dict.fromkeys(truth, 1.0))


def random_beliefs(
    truth: dict[Fact, Meaning], meanings: Sequence[Meaning], rng: random.Random
) -> Beliefs[Fact, Meaning]:
    """Beliefs drawn at random. A misconception is one of the meanings that are not true of its fact."""
    facts = rng.sample(sorted(truth), len(truth))  # pyright: ignore[reportArgumentType] (facts have an order)
    known = round(KNOWN_SHARE * len(facts))
    half = round((KNOWN_SHARE + HALF_KNOWN_SHARE) * len(facts))
    knows = {fact: KNOWN if i < known else HALF_KNOWN if i < half else UNKNOWN for i, fact in enumerate(facts)}
    misconception = {fact: rng.choice([m for m in meanings if m != truth[fact]]) for fact in facts}
    return Beliefs(truth, misconception, knows)
