"""How long attempts, refinements and references are, in tokens: the paper's trajectory analysis.

    RowFacts                        ->  lengths_of()  ->  quantiles of raw, refined and reference; by the verdict of y_o
    problems and their references   ->  References    ->  tokens of a reference, by problem

Rows whose attempt was correct already stand apart: what refinement does to them is not repair, but rewording.
"""

import heapq
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from trd_ray.diagnostics.assumptions import REFERENCES
from trd_ray.diagnostics.row_facts import RowFacts
from trd_ray.score.stats import QUANTILES

OF_VERDICT = {"all": None, "already_correct": 1.0, "failed": 0.0}


class References:
    """The references of some problems: all of them, or REFERENCES that a hash of their names chooses."""

    def __init__(self, most: int = REFERENCES):
        self.most = most
        self._texts: dict[str, str] = {}
        self._last: list[tuple[int, str]] = []  # a heap of the chosen, the first to go on top

    def add(self, problems: Iterable[str | None], references: Iterable[str | None]) -> None:
        for problem, reference in zip(problems, references, strict=True):
            if problem is None or not reference or problem in self._texts:
                continue
            place = (-zlib.crc32(problem.encode("utf-8", "replace")), problem)
            if len(self._last) < self.most:
                heapq.heappush(self._last, place)
            elif place > self._last[0]:
                del self._texts[heapq.heapreplace(self._last, place)[1]]
            else:
                continue
            self._texts[problem] = reference

    def __len__(self) -> int:
        return len(self._texts)

    def tokens(self, count: Callable[[list[str]], list[int]]) -> dict[str, int]:
        """By problem; `count` says of each text how many tokens it has."""
        return dict(zip(self._texts, count(list(self._texts.values())), strict=True))


def lengths_of(facts: RowFacts, references: dict[str, int] | None = None) -> dict[str, Any] | None:
    """None where no row has a response. `references` are the tokens of a reference by problem, of some problems."""
    reference = np.array([(references or {}).get(p or "", np.nan) for p in facts.problems], dtype=np.float64)
    columns = {"raw": facts["y_o_tokens"], "refined": facts["y_r_tokens"], "reference": reference}
    out: dict[str, Any] = {}
    for name, verdict in OF_VERDICT.items():
        chosen = np.ones(len(facts), bool) if verdict is None else facts["y_o_passed"] == verdict
        found = {what: quantiles(values[chosen]) for what, values in columns.items()}
        if found := {what: its for what, its in found.items() if its}:
            out[name] = found
    if out and references:
        out["reference_rows"] = int((~np.isnan(reference)).sum())
    return out or None


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    found = np.quantile(known, list(QUANTILES.values()))
    return {"rows": len(known), "mean": float(known.mean())} | dict(zip(QUANTILES, map(float, found), strict=True))
