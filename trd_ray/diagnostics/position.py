"""Where along a trajectory the signal sits: by tenths of its length, and how much of it in the first third.

    ScoredTokens of each step  ->  Position.add()  ->  found()  ->  ten means by kind, the first tenth first

Token t of T, counted from 0, is in the tenth floor(10 t / T), and in the first third where 3 t < T. A mean is over all
tokens in that tenth of any trajectory, so long ones weigh more. `onset` is per mille.
"""

from typing import Any

import numpy as np

from trd_ray.diagnostics.assumptions import FIRST_THIRD, TENTHS
from trd_ray.diagnostics.scored import FIELDS, KINDS, ScoredTokens


def first_third_share(scored: ScoredTokens) -> float | None:
    """The share of all KL that lies in the first thirds of the trajectories; None where there is none."""
    finite_N = scored.finite_N
    kl_N = scored.tokens["kl"][finite_N].astype(np.float64)
    total = float(kl_N.sum())
    return float(kl_N[_in_first_third(scored)[finite_N]].sum()) / total if total > 0 else None


def _in_first_third(scored: ScoredTokens) -> np.ndarray:
    return FIRST_THIRD * scored.place_N < np.repeat(scored.lengths_E, scored.lengths_E)


class Position:
    def __init__(self):
        self.sums: dict[str, dict[str, np.ndarray]] = {}
        self.first: dict[str, np.ndarray] = {}  # KL and tokens in the first third

    def add(self, scored: ScoredTokens) -> None:
        for kind, its in scored.kinds().items():
            finite_N = its.finite_N
            tenth_N = (TENTHS * its.place_N // np.repeat(its.lengths_E, its.lengths_E))[finite_N]
            sums = self.sums.setdefault(kind, {name: np.zeros(TENTHS) for name in (*FIELDS, "tokens")})
            sums["tokens"] += np.bincount(tenth_N, minlength=TENTHS)
            for name in FIELDS:
                sums[name] += np.bincount(tenth_N, weights=its.tokens[name][finite_N], minlength=TENTHS)
            early_N = finite_N & _in_first_third(its)
            kl = float(its.tokens["kl"][early_N].sum(dtype=np.float64))
            self.first[kind] = self.first.get(kind, np.zeros(2)) + [kl, early_N.sum()]

    def found(self) -> dict[str, Any] | None:
        return {kind: self._of(kind) for kind in KINDS if kind in self.sums} or None

    def _of(self, kind: str) -> dict[str, Any]:
        sums, (kl, tokens) = self.sums[kind], self.first[kind]
        counts = sums["tokens"]
        of_all = {"first_third": (kl, sums["kl"].sum()), "first_third_tokens": (tokens, counts.sum())}
        return {
            **{name: _means(sums[name] * (1000 if name == "onset" else 1), counts) for name in FIELDS},
            "tokens": [int(n) for n in counts],
            **{name: float(part / whole) if whole > 0 else None for name, (part, whole) in of_all.items()},
        }


def _means(sums: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]
