"""How much signal there is: KL, perplexities and doubt over the tokens of a kind of trajectory.

    ScoredTokens of a step  ->  SignalSums.add()  ->  figures()  ->  {"mean": 0.21, "p95": 1.1, ...}
    every step        ->  Signal.add()      ->  found()    ->  per step and over all, by kind; y_o and y_r of equal rows

- `mean` weighs every token alike, `row_mean` every trajectory: where short trajectories are the bad ones, it is larger.
- A perplexity is exp(mean NLL), of student and teacher on the same tokens, each under its own prompt (the paper's
  Figure 3). The gap is the student's minus the teacher's.
- `onset` is the mean probability that the teacher gives to words that begin a doubt, per mille.

Tokens at which something is not finite are in none of these figures; they are counted.
"""

import math
from typing import Any

import numpy as np

from trd_ray.diagnostics.scored import FIELDS, KINDS, VIEWS, ScoredTokens
from trd_ray.diagnostics.tally import Tally

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
FIGURES = ("rows", "tokens", "mean", "row_mean", *QUANTILES, "max", "ppl_student", "ppl_teacher", "ppl_gap")
FIGURES += ("onset", "not_finite")


class SignalSums:
    def __init__(self):
        self.rows = self.tokens = self.not_finite = 0
        self.sums = dict.fromkeys(FIELDS, 0.0)
        self.row_means = 0.0
        self.largest = -math.inf
        self.kl = Tally()

    def add(self, scored: ScoredTokens) -> "SignalSums":
        finite_N = scored.finite_N
        self.not_finite += int((~finite_N).sum())
        found = {name: values_N[finite_N] for name, values_N in scored.tokens.items()}
        if not len(found["kl"]):
            return self
        entry_N = scored.entry_N[finite_N]
        counts_E = np.bincount(entry_N, minlength=len(scored))
        sums_E = np.bincount(entry_N, weights=found["kl"], minlength=len(scored))
        there_E = counts_E > 0
        self.rows += int(there_E.sum())
        self.tokens += len(entry_N)
        self.row_means += float((sums_E[there_E] / counts_E[there_E]).sum())
        for name in FIELDS:
            self.sums[name] += float(found[name].sum(dtype=np.float64))
        self.largest = max(self.largest, float(found["kl"].max()))
        self.kl.add(found["kl"])
        return self

    def merge(self, other: "SignalSums") -> None:
        self.rows += other.rows
        self.tokens += other.tokens
        self.not_finite += other.not_finite
        self.row_means += other.row_means
        self.largest = max(self.largest, other.largest)
        for name in FIELDS:
            self.sums[name] += other.sums[name]
        self.kl.merge(other.kl)

    def figures(self) -> dict[str, float | None]:
        """The keys are FIGURES; None where there are no tokens to say it of."""
        out: dict[str, float | None] = dict.fromkeys(FIGURES)
        out |= {"rows": self.rows, "tokens": self.tokens, "not_finite": self.not_finite}
        if not self.tokens:
            return out
        mean = {name: total / self.tokens for name, total in self.sums.items()}
        student, teacher = _exp(mean["student_nll"]), _exp(mean["teacher_nll"])
        gap = None if student is None or teacher is None else student - teacher
        quantiles = dict(zip(QUANTILES, self.kl.quantiles(list(QUANTILES.values())), strict=True))
        of_kl = {"mean": mean["kl"], "row_mean": self.row_means / self.rows, "max": self.largest}
        of_ppl = {"ppl_student": student, "ppl_teacher": teacher, "ppl_gap": gap}
        return out | of_kl | quantiles | of_ppl | {"onset": 1000 * mean["onset"]}


def _exp(nll: float) -> float | None:
    """None where it is more than a float can hold, as of a teacher that finds nothing likely."""
    return math.exp(nll) if nll < 700 else None


class Signal:
    """Over the steps of a run."""

    def __init__(self):
        self.steps: list[int] = []
        self.each: dict[str, dict[int, dict[str, float | None]]] = {}
        self.all: dict[str, SignalSums] = {}
        self.pairs: dict[str, tuple[SignalSums, SignalSums]] = {}

    def add(self, step: int, scored: ScoredTokens) -> None:
        self.steps.append(step)
        for kind, its in scored.kinds().items():
            sums = SignalSums().add(its)
            self.each.setdefault(kind, {})[step] = sums.figures()
            self.all.setdefault(kind, SignalSums()).merge(sums)
        for view in VIEWS:
            if pair := scored.paired(view):
                for sums, its in zip(self.pairs.setdefault(view, (SignalSums(), SignalSums())), pair, strict=True):
                    sums.add(its)

    def found(self) -> dict[str, Any] | None:
        if not self.all:
            return None
        kinds = [kind for kind in KINDS if kind in self.all]
        return {
            "steps": self.steps,
            "kinds": {
                kind: {name: [self.each[kind].get(step, {}).get(name) for step in self.steps] for name in FIGURES}
                for kind in kinds
            },
            "all": {kind: self.all[kind].figures() for kind in kinds},
            "paired": {
                view: {"rows": y_o.rows, "y_o": y_o.figures(), "y_r": y_r.figures()}
                for view, (y_o, y_r) in self.pairs.items()
            },
        }
