"""A few numbers of every row of a run, kept until all rows are read: what lengths, difficulty and subsets are made of.

    StepRows of each step, edited shares  ->  RowFacts.add()  ->  columns over all B sound rows of the run

A verdict that is not known, a length of what is not there and a divergence of what did not train are NaN.
"""

from functools import cached_property

import numpy as np

from trd_ray.diagnostics.step_rows import StepRows

NUMBERS = ("y_o_passed", "y_r_passed", "y_o_tokens", "y_r_tokens", "kl", "kl_tokens", "edited_share")


class RowFacts:
    def __init__(self):
        self.problems: list[str | None] = []
        self._numbers: dict[str, list[np.ndarray]] = {name: [] for name in NUMBERS}

    def add(self, rows: StepRows, edited_B: np.ndarray) -> None:
        sums_B, tokens_B = rows.kl
        columns = {f"{y}_passed": rows.passed[y] for y in ("y_o", "y_r")}
        columns |= {f"{y}_tokens": rows.tokens[y] for y in ("y_o", "y_r")}
        columns |= {"kl": sums_B, "kl_tokens": tokens_B, "edited_share": edited_B}
        for name, values_B in columns.items():
            self._numbers[name].append(values_B[rows.sound_B])
        self.problems += [p for p, sound in zip(rows.values("problem_id"), rows.sound_B, strict=True) if sound]

    def __len__(self) -> int:
        return len(self.problems)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Once every row is added."""
        return {name: np.concatenate(found) if found else np.zeros(0) for name, found in self._numbers.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


def mean_of(values: np.ndarray) -> float | None:
    """Of what is known; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def median_of(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


def kl_of(facts: RowFacts, chosen: np.ndarray) -> float | None:
    """KL a token over what the chosen rows trained on."""
    tokens = facts["kl_tokens"][chosen].sum()
    return float(facts["kl"][chosen].sum() / tokens) if tokens else None
