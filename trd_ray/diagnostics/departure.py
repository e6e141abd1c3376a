"""Where the teacher would have left the student's own attempt: the first token of y_o that it would not have written.

    ScoredTokens, verdicts of y_o  ->  Departures.add()  ->  found()  ->  quantiles of that place, by verdict

A teacher leaves y_o at the first token with a teacher's NLL above DEPARTURE_NLL that also exceeds the student's by
DEPARTURE_EXCESS (see assumptions.py). Under the vanilla view that is the paper's prefix failure: what follows is scored
on a prefix that the teacher would not have reached. Under the refine view the teacher reads y_o in its prompt and may
copy it, so it leaves later.

The place is counted in tokens from 0, and relative to the length. Quantiles are of the rows that were left. KL before
and from that token on is over all tokens of those rows.

Legend: E entries, N tokens.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from trd_ray.diagnostics.assumptions import DEPARTURE_EXCESS, DEPARTURE_NLL
from trd_ray.diagnostics.scored import OF_VIEWS, ScoredTokens

QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}
VERDICTS = {"all": None, "passed": 1.0, "failed": 0.0}
_NEVER = -1


def departures(scored: ScoredTokens) -> np.ndarray:
    """The place of the first token at which the teacher leaves each entry; -1 where it never does."""
    teacher_N = scored.tokens["teacher_nll"].astype(np.float32)
    excess_N = teacher_N - scored.tokens["student_nll"].astype(np.float32)
    left_N = scored.finite_N & (teacher_N > DEPARTURE_NLL) & (excess_N > DEPARTURE_EXCESS)
    place_E = np.full(len(scored), _NEVER)
    entries, firsts = np.unique(scored.entry_N[left_N], return_index=True)
    place_E[entries] = scored.place_N[left_N][firsts]
    return place_E


class Departures:
    def __init__(self):
        self.places: defaultdict[str, list[np.ndarray]] = defaultdict(list)  # (place, length, verdict) of each entry
        self.kl: defaultdict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(4))

    def add(self, scored: ScoredTokens, passed_B: np.ndarray) -> None:
        """`passed_B` is StepRows.passed of y_o."""
        for kind in OF_VIEWS:
            its = scored.kind(kind)
            if kind.startswith("y_o") and len(its):
                place_E, verdict_E = departures(its), passed_B[its.row_E]
                self.places[kind].append(np.stack([place_E, its.lengths_E, verdict_E]))
                for name, verdict in VERDICTS.items():
                    left_E = (place_E != _NEVER) & (True if verdict is None else verdict_E == verdict)
                    self.kl[kind, name] += _kl_around(its, place_E, left_E)

    def found(self) -> dict[str, Any] | None:
        out = {}
        for kind, found in self.places.items():
            place, length, verdict = np.concatenate(found, axis=1)
            chosen = {name: np.ones(len(place), bool) if of is None else verdict == of for name, of in VERDICTS.items()}
            out[kind] = {
                name: _figures(place[its], length[its], self.kl[kind, name])
                for name, its in chosen.items()
                if its.any()
            }
        return out or None


def _kl_around(its: ScoredTokens, place_E: np.ndarray, left_E: np.ndarray) -> np.ndarray:
    """Sum of KL and tokens before the departure, and from it on."""
    counted_N = np.repeat(left_E, its.lengths_E) & its.finite_N
    kl_N = its.tokens["kl"].astype(np.float64)
    before_N = its.place_N < np.repeat(place_E, its.lengths_E)
    early, late = counted_N & before_N, counted_N & ~before_N
    return np.array([kl_N[early].sum(), early.sum(), kl_N[late].sum(), late.sum()])


def _figures(place: np.ndarray, length: np.ndarray, kl: np.ndarray) -> dict[str, Any]:
    left = place != _NEVER
    out: dict[str, Any] = {"rows": len(place), "departed": float(left.mean()), "relative": None, "token": None}
    if left.any():
        shares = list(QUANTILES.values())
        for name, values in {"relative": place[left] / length[left], "token": place[left]}.items():
            out[name] = dict(zip(QUANTILES, map(float, np.quantile(values, shares)), strict=True))
    out["kl_before"] = float(kl[0] / kl[1]) if kl[1] else None
    out["kl_after"] = float(kl[2] / kl[3]) if kl[3] else None
    return out
