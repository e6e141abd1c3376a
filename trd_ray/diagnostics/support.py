"""Whether refinement stays near the student: what it costs the student to write y_r, and how far y_r is from y_o.

    StepRows  ->  support_of()   ->  sums and counts by name
              ->  Support.add()  ->  found()  ->  per step and over all, and the leaks that were found

| name | a mean over | of |
|---|---|---|
| y_o_nll, y_r_nll | tokens | the student's NLL: y_o's as the engine sampled it, y_r's as the learner found it |
| edited_share | rows | tokens in which y_r differs from y_o (trd_ray.stream.edits) |
| kept_share | rows | tokens of y_o that stand in y_r in their order (kept_tokens.py) |
| leaks | refinements | whether it mentions the reference or the attempt (leaks.py) |
| y_o_repetition, y_r_repetition | responses | runs of tokens that stood in it before (repetition.py) |
| unique_answers | problems with several rollouts that state an answer | different answers / answers |

y_r_nll is that of the rows which the learner scored on y_r. Where it scored none, it is what refiner.select=nearest
asked the sampler for.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from trd_ray.diagnostics.leaks import Leak, leaks
from trd_ray.diagnostics.repetition import repeated_shares
from trd_ray.diagnostics.step_rows import StepRows, column_of

NAMES = ("y_o_nll", "y_r_nll", "edited_share", "kept_share", "leaks", "y_o_repetition", "y_r_repetition")
NAMES += ("unique_answers",)

Sums = dict[str, tuple[float, float]]  # name -> the sum, and of how many


def support_of(rows: StepRows, edits: tuple[np.ndarray, np.ndarray]) -> tuple[Sums, list[tuple[int, Leak]]]:
    """The sums of a step, of what there is, and its leaks with the places of their rows. `edits` is of kept_tokens."""
    edited_B, kept_B = edits
    found = leaked(rows)
    refined = int((rows.sound_B & rows.y_r.there_B).sum())
    sums = {
        "y_o_nll": _y_o_nll(rows),
        "y_r_nll": _y_r_nll(rows),
        "edited_share": _known(np.where(rows.y_r.there_B, edited_B, np.nan)),
        "kept_share": _known(kept_B),
        "leaks": (float(len(found)), float(refined if column_of(rows.table, "y_r.text") is not None else 0)),
        **{f"{y}_repetition": _known(_of_sound(rows, repeated_shares(rows.ids(y)))) for y in ("y_o", "y_r")},
        "unique_answers": unique_answers(rows.values("problem_id"), rows.values("epoch"), _answers(rows)),
    }
    return {name: pair for name, pair in sums.items() if pair[1] > 0}, found


def means(sums: Sums) -> dict[str, float]:
    return {name: total / count for name, (total, count) in sums.items()}


def leaked(rows: StepRows) -> list[tuple[int, Leak]]:
    texts = column_of(rows.table, "y_r.text")
    if texts is None:
        return []
    return [(row, one) for row, one in leaks(texts, column_of(rows.table, "problem")) if rows.sound_B[row]]


def unique_answers(
    problems: Iterable[Hashable], epochs: Iterable[Hashable], answers: Iterable[str | None]
) -> tuple[float, float]:
    """The sum over problems of different answers / answers, and of how many problems: those with at least two.

    The rollouts of a problem are those of one epoch. Answers are compared as text without the space around it.
    """
    of_each: defaultdict[tuple, list[str]] = defaultdict(list)
    for problem, epoch, answer in zip(problems, epochs, answers, strict=True):
        if problem is not None and answer and answer.strip():
            of_each[problem, epoch].append(answer.strip())
    shares = [len(set(its)) / len(its) for its in of_each.values() if len(its) > 1]
    return float(sum(shares)), float(len(shares))


def _answers(rows: StepRows) -> list[str | None]:
    found = rows.values("y_o.extracted")
    return [answer if sound else None for answer, sound in zip(found, rows.sound_B, strict=True)]


def _of_sound(rows: StepRows, values_B: np.ndarray) -> np.ndarray:
    return np.where(rows.sound_B, values_B, np.nan)


def _known(values_B: np.ndarray) -> tuple[float, float]:
    known = values_B[~np.isnan(values_B)]
    return float(known.sum()), float(len(known))


def _y_o_nll(rows: StepRows) -> tuple[float, float]:
    logprobs = rows.y_o_logprobs
    counted_N = rows.sound_B[logprobs.row_N] & np.isfinite(logprobs.values_N)
    return float(-logprobs.values_N[counted_N].sum(dtype=np.float64)), float(counted_N.sum())


def _y_r_nll(rows: StepRows) -> tuple[float, float]:
    scored = rows.scored
    of_y_r_E = np.array([str(kind).startswith("y_r") for kind in scored.kind_E], dtype=bool)
    first_E = np.zeros(len(scored), dtype=bool)  # the student sees the same prompt whatever the teacher's view
    places = np.flatnonzero(of_y_r_E)
    first_E[places[np.unique(scored.row_E[places], return_index=True)[1]]] = True
    its = scored.only(first_E)
    if its.finite_N.any():
        return float(its.tokens["student_nll"][its.finite_N].sum(dtype=np.float64)), float(its.finite_N.sum())
    asked_B = _of_sound(rows, -rows.numbers("refine_student_logprob")) * rows.tokens["y_r"]
    known = ~np.isnan(asked_B)
    return float(asked_B[known].sum()), float(rows.tokens["y_r"][known].sum())


class Support:
    """Over the steps of a run."""

    def __init__(self):
        self.steps: list[int] = []
        self.each: list[dict[str, float]] = []
        self.sums: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self.leaked: Counter[str] = Counter()
        self.examples: dict[str, dict[str, Any]] = {}

    def add(self, step: int, rows: StepRows, edits: tuple[np.ndarray, np.ndarray]) -> None:
        sums, found = support_of(rows, edits)
        self.steps.append(step)
        self.each.append(means(sums))
        for name, pair in sums.items():
            self.sums[name] += pair
        numbers = rows.values("row")
        for place, one in found:
            self.leaked[one.pattern] += 1
            self.examples.setdefault(one.pattern, {"row": numbers[place], "text": one.text})

    def found(self, entropies: dict[int, dict[str, float]]) -> dict[str, Any] | None:
        """`entropies` are student_entropy and teacher_entropy of steps, as metrics.jsonl has them."""
        if not self.sums:
            return None
        per_step: dict[str, list[float | None]] = {
            name: [one.get(name) for one in self.each] for name in NAMES if name in self.sums
        }
        for name in ("student_entropy", "teacher_entropy"):
            values = [entropies.get(step, {}).get(name) for step in self.steps]
            if any(value is not None for value in values):
                per_step[name] = values
        return {
            "steps": self.steps,
            "per_step": per_step,
            "all": means(
                {name: (float(self.sums[name][0]), float(self.sums[name][1])) for name in per_step if name in self.sums}
            ),
            "leaked": [
                {"pattern": name, "rows": count} | self.examples[name] for name, count in self.leaked.most_common()
            ],
        }
