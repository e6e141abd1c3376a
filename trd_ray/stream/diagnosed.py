"""The rows of a step that diagnostics look at more closely, and what the learner is to score of them.

    a step's table -> chosen() -> some rows, taken in turn from the cells of the ledger
                   -> looks()  -> y_o and y_r of each of them, each under the refine and under the vanilla teacher view

So the paper's Figure 3 is measured inside a run, whatever it trains on: the same problems and the same weights, only
the trajectory or the view differs. A teacher's prompt is the one that y_r was sampled from, where there is one; it is
cut by the paper's rule where prompt and response together are more than the teacher has positions.

Pure, apart from the tokenizers inside `Views`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trd_ray.config import ONLY, Each, Recipe, of_each
from trd_ray.distill.batches import Example
from trd_ray.rows import dicts, part
from trd_ray.stream.examples import READ
from trd_ray.views import Views, ViewTooLong, setting_of

CELLS = ((False, True), (True, True), (False, False), (True, False))  # verdicts of y_o and y_r: repaired ones first
VIEWS = ("refine", "vanilla")


@dataclass(frozen=True)
class Bounds:
    """What a sequence must not exceed on the student's and on each teacher's side."""

    student_positions: int
    teacher_positions: Mapping[str, int]
    vocabulary: int | None = None  # token ids that both sides have, None: all


class ToScore(NamedTuple):
    row: int
    trajectory: str
    view: str
    example: Example  # whose `row` is its place among the looks of the step


def chosen(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Up to `count` rows, in their order: the first of each cell of the ledger, then the second of each, and so on.

    A row whose y_r is missing, or was not judged, is in a cell of its own kind. One with a fault is in none.
    """
    cells: dict[tuple[Any, Any], list[dict[str, Any]]] = {cell: [] for cell in CELLS}
    for row in rows:
        if not row["fault"]:
            cells.setdefault((part(row, "y_o", "passed"), part(row, "y_r", "passed")), []).append(row)
    in_turn = [row for nth in zip_longest(*cells.values()) for row in nth if row is not None]
    return sorted(in_turn[:count], key=lambda row: row["row"])


def looks(table: pa.Table, count: int, recipe: Recipe, views: Each[Views], bounds: Bounds) -> list[ToScore]:
    """What is to be scored of `count` of the step's rows; ids are slices of the table's buffers where they can be."""
    found: list[ToScore] = []
    for row in chosen(dicts(table, READ), count):
        teacher = (row["teacher"] or ONLY) if recipe.teachers else ONLY
        for y in ("y_o", "y_r"):
            ids = part(row, y, "ids")
            if not _can_be_scored(row["student_prompt_ids"], ids, bounds):
                continue
            room = bounds.teacher_positions[teacher] - len(ids)
            rewrites = recipe.by_teacher[teacher].refiner.begins == "attempt"
            for view in VIEWS:
                seen = _seen(row, view, of_each(views)[teacher], room, rewrites)
                if seen is not None:
                    example = Example(len(found), row["student_prompt_ids"], seen, ids, teacher=teacher)
                    found.append(ToScore(row["row"], y, view, example))
    return found


def _can_be_scored(prompt: Any, ids: Any, bounds: Bounds) -> bool:
    if ids is None or not len(ids) or len(prompt) + len(ids) > bounds.student_positions:
        return False
    return bounds.vocabulary is None or int(np.max(ids)) < bounds.vocabulary


def _seen(row: dict[str, Any], view: str, views: Views, room: int, rewrites: bool) -> Any:
    """The teacher's prompt, in no more tokens than `room`; None where problem and instructions alone take more.

    `rewrites` says that y_r was sampled from the refine view.
    """
    refined_from = row["refine_prompt_ids"] if rewrites else None
    if view == "refine" and refined_from is not None and 0 < len(refined_from) <= room:
        return refined_from
    within = views.within(room)
    try:
        if view == "vanilla":
            return within.vanilla(row["problem"], row["reference"], **setting_of(row)).ids
        attempt = (part(row, "y_o", name) for name in ("ids", "passed", "feedback"))
        return within.refine(row["problem"], row["reference"], *attempt, **setting_of(row)).ids
    except ViewTooLong:
        return None
