"""Scores of an evaluation, never without their uncertainty.

    rows (one sample of one problem each)  ->  score()  ->  Score  ->  compare(score, base)  ->  JSON, table()

Benchmarks hold 30 to 100 problems, so the intervals resample problems, and two models are compared problem by problem.
An interval says how far the score would move with other problems of the same kind; samples are taken as they came.
Shape suffixes: P problems, S samples of each problem.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval; the ends are None when a single problem cannot give one."""

    value: float
    low: float | None
    high: float | None

    @property
    def clear_of_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Mean over problems of this score minus the other's, for each measure that both have."""

    name: str
    step: int
    differences: dict[str, Estimate]


@dataclass(frozen=True)
class Score:
    name: str  # "base" | "trained"
    step: int  # optimizer steps behind the evaluated weights
    version: int  # policy version the engines served
    samples: int
    problems: int
    scores: dict[str, Estimate]  # "avg@16", "pass@1", "pass@2", ... as shares
    tokens_mean: float
    truncated: float  # share of samples that ended at the length limit
    answered: float  # share in which an answer was found
    per_problem: dict[str, list[bool]]
    paired_with: Comparison | None = None


def avg_at_k(passed_PS: np.ndarray) -> float:
    """Avg@k: the mean over problems of the share of their k samples that pass."""
    return float(np.mean(passed_PS))


def pass_at_k(n: np.ndarray | int, c: np.ndarray | int, k: int) -> np.ndarray:
    """Unbiased Pass@k of problems with `c` of `n` samples correct: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv:2107.03374), equation 1, as a sum of logarithms: no factorial, exact where it is small.
    `n` and `c` broadcast; raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1 or np.any(k > n) or np.any(c < 0) or np.any(c > n):
        raise ValueError(f"pass@{k} needs 1 <= k <= samples and 0 <= correct <= samples")
    j = np.arange(k)
    failing_share = np.minimum(c[..., None] / (n[..., None] - j), 1.0)  # 1: fewer than k samples fail
    with np.errstate(divide="ignore"):
        return -np.expm1(np.log1p(-failing_share).sum(axis=-1))


def bootstrap(values_P: np.ndarray, resamples: int, seed: int, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean over problems; None for fewer than two problems."""
    values_P = np.asarray(values_P, dtype=np.float64)
    if len(values_P) < 2:
        return None
    result = stats.bootstrap(
        (values_P,),
        np.mean,
        n_resamples=resamples,
        batch=1000,  # bounds the memory: batch x problems values at a time
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def estimate(values_P: np.ndarray, resamples: int, seed: int) -> Estimate:
    low, high = bootstrap(values_P, resamples, seed) or (None, None)
    return Estimate(float(np.mean(values_P)), low, high)


def paired_difference(a_P: np.ndarray, b_P: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Mean of b - a over the same problems in the same order, with the interval of that mean."""
    a_P, b_P = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a_P.shape != b_P.shape:
        raise ValueError(f"paired scores need the same problems: {a_P.shape} and {b_P.shape}")
    return estimate(b_P - a_P, resamples, seed)


def measures(passed_PS: np.ndarray) -> dict[str, np.ndarray]:
    """Avg@k and Pass@1, 2, 4, ... up to k, a value for each problem."""
    samples = passed_PS.shape[1]
    correct_P = passed_PS.sum(axis=1)
    ks = [2**i for i in range(samples.bit_length())]
    return {f"avg@{samples}": passed_PS.mean(axis=1)} | {f"pass@{k}": pass_at_k(samples, correct_P, k) for k in ks}


def score(rows: Iterable[dict], *, name: str, step: int, version: int, resamples: int, seed: int) -> Score:
    """From rows with problem_id, y_o_passed, y_o_ids, y_o_finish and y_o_extracted, in any order.

    Raises ValueError for no rows, and for problems that were not all sampled equally often.
    """
    passed: dict[str, list[bool]] = {}
    tokens, truncated, answered = [], 0, 0
    for row in rows:
        passed.setdefault(row["problem_id"], []).append(bool(row["y_o_passed"]))
        tokens.append(len(row["y_o_ids"]))
        truncated += row["y_o_finish"] == "length"
        answered += bool(row["y_o_extracted"])
    passed = dict(sorted(passed.items()))
    passed_PS = _matrix(passed)
    return Score(
        name=name,
        step=step,
        version=version,
        samples=passed_PS.shape[1],
        problems=passed_PS.shape[0],
        scores={m: estimate(values_P, resamples, seed) for m, values_P in measures(passed_PS).items()},
        tokens_mean=float(np.mean(tokens)),
        truncated=truncated / len(tokens),
        answered=answered / len(tokens),
        per_problem=passed,
    )


def compare(trained: Score, base: Score, *, resamples: int, seed: int) -> Score:
    """`trained` with its difference from `base`; raises ValueError unless both saw the same problems."""
    if trained.per_problem.keys() != base.per_problem.keys():
        raise ValueError(f"{trained.name} and {base.name} were not evaluated on the same problems")
    before = measures(_matrix({p: base.per_problem[p] for p in trained.per_problem}))
    after = measures(_matrix(trained.per_problem))
    differences = {m: paired_difference(before[m], after[m], resamples, seed) for m in after if m in before}
    return replace(trained, paired_with=Comparison(base.name, base.step, differences))


def to_json(score: Score) -> dict[str, Any]:
    return asdict(score)


def from_json(tree: dict[str, Any]) -> Score:
    def estimates(values: dict[str, dict]) -> dict[str, Estimate]:
        return {m: Estimate(**v) for m, v in values.items()}

    pair = tree["paired_with"]
    if pair is not None:
        pair = Comparison(pair["name"], pair["step"], estimates(pair["differences"]))
    return Score(**{**tree, "scores": estimates(tree["scores"]), "paired_with": pair})


def table(scores: list[Score]) -> list[list[str]]:
    """Header and rows of text, one column a score, in percent; the last column is the last score's difference.

    Pass@1 is left out: it is the same number as Avg@k.
    """
    pair = scores[-1].paired_with
    header = ["", *(f"{s.name} (step {s.step})" for s in scores)]
    if pair:
        header.append(f"{scores[-1].name} - {pair.name}")
    lines = [header]
    for measure in dict.fromkeys(m for s in scores for m in s.scores if m != "pass@1"):
        line = [measure.capitalize(), *(_percent(s.scores.get(measure)) for s in scores)]
        lines.append(line + ([_percent(pair.differences.get(measure), signed=True)] if pair else []))
    blank = [""] if pair else []
    lines.append(["Mean tokens", *(f"{s.tokens_mean:.1f}" for s in scores), *blank])
    lines.append(["Cut at the length limit", *(f"{100 * s.truncated:.1f}" for s in scores), *blank])
    lines.append(["Answer found", *(f"{100 * s.answered:.1f}" for s in scores), *blank])
    return lines


def _percent(e: Estimate | None, signed: bool = False) -> str:
    if e is None:
        return "-"
    sign = "+" if signed else ""
    if e.low is None or e.high is None:
        return f"{100 * e.value:{sign}.1f}"
    return f"{100 * e.value:{sign}.1f} [{100 * e.low:{sign}.1f}, {100 * e.high:{sign}.1f}]"


def _matrix(passed: dict[str, list[bool]]) -> np.ndarray:
    counts = {len(samples) for samples in passed.values()}
    if len(counts) != 1:
        raise ValueError(f"every problem needs the same number of samples, found {sorted(counts) or 'no rows'}")
    return np.array(list(passed.values()), dtype=bool)
