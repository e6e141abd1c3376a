"""Differences between methods that were run with several seeds on the same problems, with intervals that hold both.

    name -> SeedBlocks of values [S, P], one for each base  ->  simultaneous()  ->  name -> Crossed

A block holds a value for each seed and problem; for a difference it is one method minus another at the same seed and
problem, which is what pairs them. Seeds and problems are resampled apart (two levels), and every comparison sees the
same draws. Bases are not resampled: two or three of them show no spread, so an interval speaks of these bases.

- Of n seeds or problems n - 1 are drawn, since n draws would give a variance that is too small by (n - 1) / n (Rao and
  Wu 1988, doi:10.1080/01621459.1988.10478591). With three seeds that is a third.
- Student's t, with the degrees of freedom of Satterthwaite (1946), takes the place of the percentiles: the percentiles
  of three seeds hold the truth much less often than they say.
- What neither seed nor problem explains counts three times under such draws instead of once (Owen 2007,
  doi:10.1214/07-AOAS122): a little too wide where seeds and problems hardly matter.
- Max-t corrects for the number of comparisons: the level is that at which the largest of all |difference| / error stays
  within its interval. It knows from the draws how comparisons hang together, so it asks for less than Bonferroni or
  Holm would, and it gives intervals, which Holm's steps do not.
- The mean of a block with one seed holds problems alone: `seeds_held` says so.

How often the interval of one comparison holds the truth (percent of 1,500 simulations, 60 problems; standard deviations
of seeds, of problems; the rest is 0.1; shorter ones in tests/score/test_two_level.py):

    seeds       0.05, 0.05    0.05, 0.1    0.02, 0.2    0, 0.1
    2                   89           91           97        99
    3                   94           95           96        99
    8                   96           96           96        98

Shape suffixes: R resamples, S seeds, P problems.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from trd_ray.score.stats import DIFFERENCE, LEVEL, hardly_vary, jeffreys

POWER = 0.8


@dataclass(frozen=True)
class SeedBlock:
    """Values of the seeds and problems of one base."""

    base: str
    seeds: tuple[int, ...]
    values_SP: np.ndarray


@dataclass(frozen=True)
class Crossed:
    """A mean over bases, seeds and problems. The ends are None for one problem with one seed."""

    value: float
    low: float | None  # corrected for the number of comparisons
    high: float | None
    low_alone: float | None  # as if this were the only comparison
    high_alone: float | None
    # The smallest true value that such a design finds in POWER of all cases, once corrected; None where the values of
    # problems vary too little to tell.
    detectable: float | None
    seeds_held: bool


def simultaneous(
    comparisons: Mapping[str, Sequence[SeedBlock]],
    resamples: int,
    seed: int,
    ends: tuple[float, float] = DIFFERENCE,
    level: float = LEVEL,
) -> dict[str, Crossed]:
    """The mean of each comparison, with intervals that all hold the truth together in `level` of all cases."""
    draws = _Draws(resamples, seed)
    values = {name: float(np.mean([b.values_SP.mean() for b in blocks])) for name, blocks in comparisons.items()}
    errors: dict[str, float] = {}
    largest_R = np.zeros(resamples)
    for name, blocks in comparisons.items():
        off_R = np.mean([draws.means(block) for block in blocks], axis=0) - values[name]
        errors[name] = float(np.sqrt(np.mean(off_R**2)))
        if errors[name] > 0:
            largest_R = np.maximum(largest_R, np.abs(off_R) / errors[name])
    together = float(np.quantile(largest_R, level))
    one = float(stats.norm.isf((1 - level) / 2))
    tail = float(stats.norm.sf(max(together, one))) if len(comparisons) > 1 else (1 - level) / 2
    return {
        name: _crossed(blocks, values[name], errors[name], (1 - level) / 2, tail, ends, resamples, seed)
        for name, blocks in comparisons.items()
    }


def alone(blocks: Sequence[SeedBlock], resamples: int, seed: int, ends: tuple[float, float]) -> Crossed:
    """One comparison or one score, for itself."""
    return simultaneous({"": blocks}, resamples, seed, ends)[""]


def _crossed(
    blocks: Sequence[SeedBlock], value: float, error: float, own_tail: float, tail: float,
    ends: tuple[float, float], resamples: int, seed: int,
) -> Crossed:  # fmt: skip
    held = all(len(block.seeds) > 1 for block in blocks)
    freedom = degrees_of_freedom(blocks)
    if freedom is None:
        return Crossed(value, None, None, None, None, None, held)
    limits = []
    values_P = np.concatenate([block.values_SP.mean(axis=0) for block in blocks])
    uniform = len(values_P) > len(blocks) and hardly_vary(values_P)
    for one in (tail, own_tail):
        half = error * float(stats.t.isf(one, freedom))
        low, high = max(ends[0], value - half), min(ends[1], value + half)
        if uniform:  # nearly all problems agree: the draws are more certain than they can be
            widest = jeffreys(values_P, ends, resamples, seed, 1 - 2 * one)
            low, high = min(low, widest[0]), max(high, widest[1])
        limits += [low, high]
    found = None if uniform else error * _errors_to_find(tail, freedom)
    return Crossed(value, *limits, detectable=found, seeds_held=held)


def _errors_to_find(tail: float, freedom: float) -> float:
    """How many standard errors a true value must be for its interval to be clear of zero in POWER of all cases.

    By the noncentral t distribution: the sum of two quantiles of Student's t, which is often used, is too small
    where seeds are few: with three seeds by 5%, and by 13% at a level of 0.99.
    """
    limit = float(stats.t.isf(tail, freedom))

    def missing(errors: float) -> float:
        return float(stats.nct.sf(limit, freedom, errors)) - POWER

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a series that ends early, hundreds of errors from zero
        return float(optimize.root_scalar(missing, bracket=(limit, 3 * limit + 10)).root)


def degrees_of_freedom(blocks: Sequence[SeedBlock]) -> float | None:
    """Satterthwaite's, of the variances between the seeds and between the problems of each base; None for no spread."""
    parts = []
    for block in blocks:
        for axis, n in ((1, block.values_SP.shape[0]), (0, block.values_SP.shape[1])):
            if n > 1:
                parts.append((float(block.values_SP.mean(axis=axis).var(ddof=1)) / n, n - 1))
    if not parts:
        return None
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return float(min(freedom for _, freedom in parts))
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts)


class _Draws:
    """The same resamples of a base's seeds and problems for every comparison that has them."""

    def __init__(self, resamples: int, seed: int):
        self._resamples = resamples
        self._seed = seed
        self._weights: dict[tuple, np.ndarray] = {}

    def means(self, block: SeedBlock) -> np.ndarray:
        """The mean of a block's values under each resample [R]."""
        seeds, problems = block.values_SP.shape
        of_seeds_RS = self._of("seeds", block.base, block.seeds, seeds)
        of_problems_RP = self._of("problems", block.base, (problems,), problems)
        return np.einsum("rp,rp->r", of_seeds_RS @ block.values_SP, of_problems_RP)

    def _of(self, what: str, base: str, which: tuple, n: int) -> np.ndarray:
        key = (what, base, which)
        if key not in self._weights:
            if n == 1:
                self._weights[key] = np.ones((self._resamples, 1))
            else:
                entropy = [self._seed, *repr(key).encode()]
                counts = np.random.default_rng(entropy).multinomial(n - 1, np.full(n, 1 / n), size=self._resamples)
                self._weights[key] = counts / (n - 1)
        return self._weights[key]
