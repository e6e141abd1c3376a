"""How long the texts of a step are: assumed from the paper, or drawn from those of a recorded run.

Assumed | RunFacts  ->  rows(n, seed)  ->  n Rows of tokens
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

from trd_ray.economics import constants as c


class Row(NamedTuple):
    """Tokens of one row. Without a refinement all but the first two are 0."""

    prompt: int
    raw: int
    refine_prompt: int
    refined: int
    others: tuple[int, ...] = ()  # refinements that are made beside it, where refiner.n is above 1
    kept: int = 0  # of the attempt, with which the refinement begins: not generated, but trained on

    @property
    def all_refined(self) -> int:
        return self.refined + sum(self.others)


class Lengths(Protocol):
    @property
    def said(self) -> str: ...

    def rows(self, n: int, seed: int) -> list[Row]: ...


SHORT = 4  # a limit so many times below a median says that the texts are of another kind


@dataclass(frozen=True)
class LengthSpread:
    """Lognormal, cut at `most`."""

    median: float
    sigma: float
    most: int

    def draw(self, rng: random.Random) -> int:
        return min(self.most, max(1, round(rng.lognormvariate(math.log(self.median), self.sigma))))

    @property
    def cut_share(self) -> float:
        """The share that reaches the limit."""
        z = (math.log(self.most) - math.log(self.median)) / (self.sigma * math.sqrt(2))
        return 0.5 * math.erfc(z)


@dataclass(frozen=True)
class Assumed:
    raw: LengthSpread
    refined: LengthSpread
    prompt: int
    reference: int  # in the refine prompt; 0 where it is not shown
    most_refine_prompt: int
    said: str

    def rows(self, n: int, seed: int) -> list[Row]:
        return list(_drawn(self, n, seed))


@lru_cache(maxsize=64)  # the changes of a recipe are compared on the same rows
def _drawn(lengths: Assumed, n: int, seed: int) -> tuple[Row, ...]:
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        raw, refined = lengths.raw.draw(rng), lengths.refined.draw(rng)
        shown = lengths.prompt + c.REFINE_WORDS_TOKENS + raw + lengths.reference
        found.append(Row(lengths.prompt, raw, min(shown, lengths.most_refine_prompt), refined))
    return tuple(found)


@dataclass(frozen=True)
class RunFacts:
    """The rows of a run, of which a step's are drawn. Limits below those of the run cut them."""

    of_run: tuple[Row, ...]
    said: str
    most_raw: int | None = None
    most_refined: int | None = None

    def rows(self, n: int, seed: int) -> list[Row]:
        rng = random.Random(seed)
        pool: Sequence[Row] = self.of_run
        drawn = [pool[i] for i in rng.sample(range(len(pool)), n)] if n <= len(pool) else rng.choices(pool, k=n)
        return [self._cut(row) for row in drawn]

    def _cut(self, row: Row) -> Row:
        raw = min(row.raw, self.most_raw or row.raw)
        refined = min(row.refined, self.most_refined or row.refined)
        return row._replace(raw=raw, refined=refined, refine_prompt=max(0, row.refine_prompt - (row.raw - raw)))


def assumed(
    most_raw: int, most_refined: int, most_refine_prompt: int, *, reference: bool, prompt: int | None = None
) -> Assumed:
    """The paper's lengths below these limits; where a limit is far below them, half of it."""
    raw = _spread(c.RAW_MEDIAN, c.RAW_SPREAD, most_raw)
    refined = _spread(c.REFINED_MEDIAN, c.REFINED_SPREAD, most_refined)
    whose = (
        "the paper's, of Qwen3-8B on DeepScaleR"
        if raw.median == c.RAW_MEDIAN
        else "half of the limit, since nothing is known"
    )
    said = (
        f"lengths are assumed: medians of {min(raw.median, most_raw):,.0f} tokens sampled ({whose}) and "
        f"{min(refined.median, most_refined):,.0f} refined, {raw.cut_share:.0%} of the samples cut at {most_raw:,}"
    )
    shown = c.REFERENCE_TOKENS if reference else 0
    return Assumed(raw, refined, prompt or c.PROBLEM_TOKENS, shown, most_refine_prompt, said)


def _spread(median: float, sigma: float, most: int) -> LengthSpread:
    known = LengthSpread(median, sigma, most)
    return known if most >= median / SHORT else replace(known, median=max(1.0, most * c.TOKENS_OF_A_SHORT_LIMIT))
