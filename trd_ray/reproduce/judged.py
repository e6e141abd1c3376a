"""Figures and our scores become verdicts.

    Figure, Score with its difference from the base  ->  JudgedFigure  ->  passes | fails | undecided | not measured

- `score_at_least` compares the score itself. The problems are those of the report, so another run of them differs by
  the noise of sampling and training, for which the bound leaves room. The interval says how far the score would move
  with other problems, and has no part in it.
- `gain_above` and `gain_below` compare the interval of the paired difference from the base: it has to lie wholly on the
  right side. Wholly on the other side, the figure fails; in between, the evaluation cannot tell.
"""

from dataclasses import dataclass

import numpy as np

from trd_ray.reproduce.figures import CRITERIA, Figure, Figures
from trd_ray.score.stats import Estimate, Score, estimate

PASSES, FAILS, UNDECIDED, NOT_MEASURED, SHOWN = "passes", "fails", "undecided", "not measured", "-"
ROLLOUTS = "rollouts"
SHARES = ("passed", "truncated", "no_answer", "unanswered", "empty")  # how the names of metrics end that are shares


@dataclass(frozen=True)
class JudgedFigure:
    """One figure of the table; ours are percent, or tokens where the metric counts them."""

    where: str  # a benchmark, or ROLLOUTS
    measure: str
    figure: Figure
    base: Estimate | None = None
    score: Estimate | None = None
    gain: Estimate | None = None

    @property
    def verdict(self) -> str:
        """The worst of the figure's criteria."""
        found = [self.of(criterion) for criterion in CRITERIA if getattr(self.figure, criterion) is not None]
        return next((v for v in (NOT_MEASURED, FAILS, UNDECIDED, PASSES) if v in found), SHOWN)

    def of(self, criterion: str) -> str:
        """The verdict of one criterion, which the figure has."""
        bound = getattr(self.figure, criterion)
        if criterion == "score_at_least":
            if self.score is None:
                return NOT_MEASURED
            return PASSES if self.score.value >= bound else FAILS
        if self.gain is None:
            return NOT_MEASURED
        low, high = self.gain.low, self.gain.high
        if low is None or high is None:
            return UNDECIDED
        above, below = low > bound, high < bound
        right, wrong = (above, below) if criterion == "gain_above" else (below, above)
        return PASSES if right else FAILS if wrong else UNDECIDED


def lines(figures: Figures, scores: dict[str, tuple[Score | None, Score]], steps: list[dict]) -> list[JudgedFigure]:
    """A line for each figure; `scores` are base and trained of each benchmark, `steps` the metrics of the run."""
    out = []
    for benchmark, measures in figures.benchmarks.items():
        base, trained = scores.get(benchmark, (None, None))
        for measure, figure in measures.items():
            paired = trained.paired_with if trained else None
            out.append(
                JudgedFigure(
                    benchmark,
                    measure,
                    figure,
                    base=_percent(base.scores.get(measure) if base else None),
                    score=_percent(trained.scores.get(measure) if trained else None),
                    gain=_percent(paired.differences.get(measure) if paired else None),
                )
            )
    for metric, figure in figures.rollouts.items():
        out.append(JudgedFigure(ROLLOUTS, metric, figure, score=over_steps(metric, steps)))
    return out


def over_steps(metric: str, steps: list[dict]) -> Estimate | None:
    """The mean of a metric over the steps of a run; that of a share has an interval over steps."""
    values = np.array([step[metric] for step in steps if step.get(metric) is not None], dtype=np.float64)
    if not len(values):
        return None
    if is_share(metric):
        return _percent(estimate(values, 10_000, 0))
    return Estimate(float(values.mean()), None, None)


def is_share(measure: str) -> bool:
    return "@" in measure or measure.endswith(SHARES)


def _percent(e: Estimate | None) -> Estimate | None:
    if e is None:
        return None
    low, high = (None if end is None else 100 * end for end in (e.low, e.high))
    return Estimate(100 * e.value, low, high)
