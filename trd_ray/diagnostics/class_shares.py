"""How much of the signal each class of tokens holds: by kind of trajectory, the shares of KL and of tokens.

    StepRows, TokenClasses  ->  ClassShares.add()  ->  found()  ->  {"trained": {"number": {"kl": 0.31, ...}}}

A class whose share of KL is far above its share of tokens is where teacher and student disagree. Tokens at which
something is not finite are left out, and so is a trajectory whose ids are not as many as what was found for it.

Legend: E entries, N tokens.
"""

from typing import Any

import numpy as np

from trd_ray.diagnostics.scored import KINDS, ScoredTokens
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.token_classes import CLASSES, TokenClasses


class ClassShares:
    def __init__(self, classes: TokenClasses):
        self.classes = classes
        self.sums: dict[str, np.ndarray] = {}  # by kind: KL and tokens of each class

    def add(self, rows: StepRows) -> None:
        scored = _with_ids(rows)
        if not len(scored):
            return
        ids_N = np.concatenate(
            [rows.ids(str(kind)[:3])[row] for kind, row in zip(scored.kind_E, scored.row_E, strict=True)]
        )
        class_N = self.classes.of(ids_N, scored.place_N == 0)
        for kind in KINDS:
            counted_N = np.repeat(scored.of_kind(kind), scored.lengths_E) & scored.finite_N
            if counted_N.any():
                its = class_N[counted_N]
                kl = np.bincount(its, weights=scored.tokens["kl"][counted_N], minlength=len(CLASSES))
                found = np.stack([kl, np.bincount(its, minlength=len(CLASSES))])
                self.sums[kind] = self.sums.get(kind, np.zeros_like(found)) + found

    def found(self) -> dict[str, Any] | None:
        return {kind: _shares(*self.sums[kind]) for kind in KINDS if kind in self.sums} or None


def _with_ids(rows: StepRows) -> ScoredTokens:
    scored = rows.scored
    lengths = {y: rows.ids(y).lengths_B for y in ("y_o", "y_r")}
    its_E = [lengths[str(kind)[:3]][row] for kind, row in zip(scored.kind_E, scored.row_E, strict=True)]
    return scored.only(np.array(its_E, dtype=np.int64) == scored.lengths_E)


def _shares(kl: np.ndarray, tokens: np.ndarray) -> dict[str, dict[str, float | None]]:
    """By class, the largest share of KL first; classes without tokens are left out."""
    all_kl = kl.sum()
    return {
        CLASSES[i]: {
            "kl": float(kl[i] / all_kl) if all_kl > 0 else None,
            "tokens": float(tokens[i] / tokens.sum()),
            "mean": float(kl[i] / tokens[i]),
            "count": int(tokens[i]),
        }
        for i in np.argsort(-kl, kind="stable")
        if tokens[i]
    }
