"""Scores of an evaluation, never without their uncertainty.

    answers (one sample of one problem each)  ->  score()  ->  Score  ->  compare(score, base)  ->  JSON, table()

Benchmarks hold 30 to 100 problems. So the intervals resample problems, and two models are compared problem by problem.
An interval says how far the score would move with other problems of the same kind; samples are taken as they came.

- Bootstrap: the usual interval. It knows no value that the sample lacks: where no problem of four is solved, it is
  certain of 0%.
- `jeffreys`: with fewer than FEW problems, or fewer than RARE that differ from the rest, because of that.
- Rates over samples (truncated, answer found) resample problems too. The samples of one problem are alike, and an
  interval that took them as independent would be too narrow.
- Wilson: only where the unit is a problem that counts or does not (ever solved).

Shape suffixes: P problems, S samples of each problem, M measures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
RESAMPLED_VALUES = 16_000_000  # the most that a bootstrap holds at a time
FEW = 10  # problems that a bootstrap needs at least
RARE = 5  # problems with another than the commonest value that a bootstrap needs at least
SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # the ends between which a measure lies


@dataclass(frozen=True)
class Answer:
    """What the scores need to know of one sample."""

    problem_id: str
    passed: bool
    tokens: int
    truncated: bool  # it ended at the length limit
    answered: bool  # an answer was found in it


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
class Paired:
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
    scores: dict[str, Estimate]  # "avg@16", "pass@1", "pass@2", ... "pass@16" as shares
    solved: Estimate  # share of problems with a sample that passed, which is Pass@n; Wilson's interval over problems
    truncated: Estimate  # share of samples that ended at the length limit; bootstrap over problems
    answered: Estimate  # share in which an answer was found
    tokens_mean: float
    tokens: dict[str, float]  # quantiles of the lengths of all samples, keys of QUANTILES
    per_problem: dict[str, list[bool]]
    paired_with: Paired | None = None


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
    [interval] = bootstraps(np.asarray(values_P)[None], resamples, seed, level)
    return interval


def bootstraps(
    values_MP: np.ndarray, resamples: int, seed: int, level: float = LEVEL
) -> list[tuple[float, float] | None]:
    """An interval for each measure; all measures see the same resamples of the problems."""
    values_MP = np.asarray(values_MP, dtype=np.float64)
    if values_MP.shape[1] < 2:
        return [None] * len(values_MP)
    result = stats.bootstrap(
        (values_MP,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, min(resamples, RESAMPLED_VALUES // values_MP.size)),
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low_M, high_M = result.confidence_interval
    return [(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]


def jeffreys(
    values_P: np.ndarray, ends: tuple[float, float], resamples: int, seed: int, level: float = LEVEL
) -> tuple[float, float]:
    """The interval of a mean over problems with values between `ends`, for a sample that hardly shows their spread.

    The Bayesian bootstrap (Rubin 1981, doi:10.1214/aos/1176345338) with half an observation at each end: a weight of
    Gamma(1) for each problem and of Gamma(1/2) for each end. Where the values are 0 and 1, it is the Jeffreys interval
    of a share, Beta(passed + 1/2, failed + 1/2), which holds the truth as often as it says on average, for few problems
    too (Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286). It always holds the sample's own mean.
    """
    low, high = np.quantile(
        _drawn_means(values_P, ends, resamples, np.random.default_rng(seed)), [(1 - level) / 2, (1 + level) / 2]
    )
    value = float(np.mean(values_P))
    return min(float(low), value), max(float(high), value)


def _drawn_means(
    values_P: np.ndarray, ends: tuple[float, float], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    values, counts = _distinct(values_P)
    weights = rng.standard_gamma([*counts, 0.5, 0.5], size=(resamples, len(counts) + 2))
    return weights @ [*values, *ends] / weights.sum(axis=1)


def _distinct(values_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and how many problems have each; what differs by rounding alone is one value."""
    return np.unique(np.round(np.asarray(values_P, dtype=np.float64), 12), return_counts=True)


def hardly_vary(values_P: np.ndarray) -> bool:
    """Whether a sample shows too little of its spread for a bootstrap."""
    return len(values_P) < FEW or len(values_P) - max(_distinct(values_P)[1]) < RARE


def estimate(values_P: np.ndarray, resamples: int, seed: int, ends: tuple[float, float] = SHARE) -> Estimate:
    return estimates({"": values_P}, resamples, seed, ends)[""]


def estimates(
    values: Mapping[str, np.ndarray], resamples: int, seed: int, ends: tuple[float, float] = SHARE
) -> dict[str, Estimate]:
    """The mean over problems of each measure, a value between `ends` for each problem, with its interval.

    The interval is the bootstrap's, or `jeffreys` where the sample is too small or too uniform for one. How often the
    two hold the truth, of shares between 0.5% and 99.5% (percent, mean and least over the shares; exact):

        problems                          8          30         100
        bootstrap alone                66, 4      82, 14      90, 39
        as here                       96, 93      96, 91      96, 93
    """
    values_MP = np.array(list(values.values()), dtype=np.float64)
    intervals = bootstraps(values_MP, resamples, seed)
    for i, values_P in enumerate(values_MP):
        if intervals[i] and hardly_vary(values_P):
            intervals[i] = jeffreys(values_P, ends, resamples, seed)
    return {
        measure: Estimate(float(np.mean(values_P)), *(interval or (None, None)))
        for measure, values_P, interval in zip(values, values_MP, intervals, strict=True)
    }


def mean_of_means(groups: list[np.ndarray], resamples: int, seed: int, ends: tuple[float, float] = SHARE) -> Estimate:
    """The unweighted mean over benchmarks of each one's mean over problems, which are resampled within a benchmark."""
    value = float(np.mean([np.mean(values_P) for values_P in groups]))
    if min(map(len, groups)) < 2:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for values_P in groups:
        if hardly_vary(values_P):
            drawn += _drawn_means(values_P, ends, resamples, rng) / len(groups)
            continue
        counts_RP = rng.multinomial(len(values_P), np.full(len(values_P), 1 / len(values_P)), size=resamples)
        drawn += counts_RP @ np.asarray(values_P, dtype=np.float64) / (len(values_P) * len(groups))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def wilson(count: int, of: int, level: float = LEVEL) -> Estimate:
    """A share of independent units (problems, not the samples of a problem) with Wilson's score interval."""
    interval = stats.binomtest(count, of).proportion_ci(confidence_level=level, method="wilson")
    return Estimate(count / of, float(interval.low), float(interval.high))


def paired_difference(a_P: np.ndarray, b_P: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Mean of b - a over the same problems in the same order, with the interval of that mean."""
    a_P, b_P = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a_P.shape != b_P.shape:
        raise ValueError(f"paired scores need the same problems: {a_P.shape} and {b_P.shape}")
    return estimate(b_P - a_P, resamples, seed, DIFFERENCE)


def measures(passed_PS: np.ndarray) -> dict[str, np.ndarray]:
    """Avg@n and Pass@k for every k from 1 to the n samples, a value for each problem."""
    return measures_of_counts(passed_PS.sum(axis=1), passed_PS.shape[1])


def measures_of_counts(correct_P: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """As `measures`, of how many of the samples of each problem passed."""
    passes = {f"pass@{k}": pass_at_k(samples, correct_P, k) for k in range(1, samples + 1)}
    return {f"avg@{samples}": np.asarray(correct_P) / samples} | passes


def answers_of(rows: Iterable[dict]) -> list[Answer]:
    """The answers in rows that have a problem_id and a judged y_o."""
    return [
        Answer(
            problem_id=row["problem_id"],
            passed=bool(row["y_o"]["passed"]),
            tokens=len(row["y_o"]["ids"]),
            truncated=row["y_o"]["finish"] == "length",
            answered=bool(row["y_o"]["extracted"]),
        )
        for row in rows
    ]


def score(
    answers: Iterable[Answer] | Iterable[dict], *, name: str, step: int, version: int, resamples: int, seed: int
) -> Score:
    """The score of answers, or of the rows of a run (see `answers_of`), in any order.

    Raises ValueError for no answers, and for problems that were not all sampled equally often.
    """
    by_problem: dict[str, list[Answer]] = {}
    for answer in answers:
        [answer] = [answer] if isinstance(answer, Answer) else answers_of([answer])
        by_problem.setdefault(answer.problem_id, []).append(answer)
    by_problem = dict(sorted(by_problem.items()))
    passed = {problem_id: [a.passed for a in found] for problem_id, found in by_problem.items()}
    passed_PS = _matrix(passed)
    rates = {
        rate: np.array([np.mean([getattr(a, rate) for a in found]) for found in by_problem.values()])
        for rate in ("truncated", "answered")
    }
    found = estimates(measures(passed_PS) | rates, resamples, seed)
    tokens = np.array([a.tokens for found in by_problem.values() for a in found])
    return Score(
        name=name,
        step=step,
        version=version,
        samples=passed_PS.shape[1],
        problems=passed_PS.shape[0],
        truncated=found.pop("truncated"),
        answered=found.pop("answered"),
        scores=found,
        solved=wilson(int(passed_PS.any(axis=1).sum()), len(passed_PS)),
        tokens_mean=float(np.mean(tokens)),
        tokens={label: float(np.quantile(tokens, q)) for label, q in QUANTILES.items()},
        per_problem=passed,
    )


def compare(trained: Score, base: Score, *, resamples: int, seed: int) -> Score:
    """`trained` with its difference from `base`; raises ValueError unless both saw the same problems.

    With unequal numbers of samples, Avg is compared all the same, and Pass@k for every k that both have.
    """
    if trained.per_problem.keys() != base.per_problem.keys():
        raise ValueError(f"{trained.name} and {base.name} were not evaluated on the same problems")
    before = measures(_matrix({p: base.per_problem[p] for p in trained.per_problem}))
    before[f"avg@{trained.samples}"] = before[f"avg@{base.samples}"]
    after = measures(_matrix(trained.per_problem))
    differences = estimates({m: after[m] - before[m] for m in after if m in before}, resamples, seed, DIFFERENCE)
    return replace(trained, paired_with=Paired(base.name, base.step, differences))


def to_json(score: Score) -> dict[str, Any]:
    return asdict(score)


def from_json(tree: dict[str, Any]) -> Score:
    """The score in a tree of `to_json`, whatever else the tree holds."""

    def estimates(values: dict[str, dict]) -> dict[str, Estimate]:
        return {m: Estimate(**v) for m, v in values.items()}

    pair = tree["paired_with"]
    if pair is not None:
        pair = Paired(pair["name"], pair["step"], estimates(pair["differences"]))
    own: dict[str, Any] = {field.name: tree[field.name] for field in fields(Score)}
    own |= estimates({rate: tree[rate] for rate in ("solved", "truncated", "answered")})
    return Score(**own | {"scores": estimates(tree["scores"]), "paired_with": pair})


def shown(samples: int) -> list[str]:
    """The measures of a table: Avg@n, Pass@k for the powers of two and for n. Pass@1 is the same number as Avg@n."""
    ks = {2**i for i in range(1, samples.bit_length())} | {samples}
    return [f"avg@{samples}", *(f"pass@{k}" for k in sorted(ks) if k > 1)]


def table(scores: list[Score], header: list[str] | None = None) -> list[list[str]]:
    """A header and rows of text, one column for each score, in percent; the last is the last score's difference."""
    pair = scores[-1].paired_with
    header = ["", *(header or [f"{s.name} (step {s.step})" for s in scores])]
    if pair:
        header.append(f"{scores[-1].name} - {pair.name}")
    lines = [header]
    # Avg before Pass, each with k ascending, also where the scores have different numbers of samples.
    found = {m for s in scores for m in shown(s.samples)}
    for measure in sorted(found, key=lambda m: (m.partition("@")[0], int(m.partition("@")[2]))):
        line = [measure.capitalize(), *(percent(s.scores.get(measure)) for s in scores)]
        lines.append(line + ([percent(pair.differences.get(measure), signed=True)] if pair else []))
    blank = [""] if pair else []
    lines.append(["Problems ever solved", *(percent(s.solved) for s in scores), *blank])
    lines.append(["Cut at the length limit", *(percent(s.truncated) for s in scores), *blank])
    lines.append(["Answer found", *(percent(s.answered) for s in scores), *blank])
    lines.append(["Mean tokens", *(f"{s.tokens_mean:.1f}" for s in scores), *blank])
    lines.append(["Tokens p5 / p50 / p95 / max", *(_lengths(s) for s in scores), *blank])
    return lines


def _lengths(s: Score) -> str:
    return " / ".join(f"{s.tokens[label]:.0f}" for label in ("p5", "p50", "p95", "max"))


def percent(e: Estimate | None, signed: bool = False) -> str:
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
