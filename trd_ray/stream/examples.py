"""What a row trains: verdicts become an example, or a reason why the row gives none.

    row (y_o, y_r, verdicts) -> build(): trajectory, train or dropped_because, student view, teacher view, response
    a step's table           -> examples_of(): what the learner trains on, as slices of the table's buffers

This module is pure, apart from the tokenizers inside `Views`.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray.config import ONLY, Each, Recipe, of_each
from trd_ray.distill.batches import Example
from trd_ray.rows import EXAMPLE, ROW, dicts, part
from trd_ray.stream.choosing import strays
from trd_ray.stream.edits import edited_places, edited_share
from trd_ray.stream.trajectories import wanted
from trd_ray.views import Views, setting_of

BAD_ROW = "bad row"  # why a row with a fault is dropped; its `fault` says what it is
WAITS = "waits for review"  # the same of a row that a person has not judged yet
NO_REFERENCE = "no reference"  # the same of a row that was to train on its y*
UNEDITED = "nothing edited"  # the same of a refinement without a token that loss.span=edited could train
EDITED = "edited too much"  # the same of a row without a refinement within refiner.max_edited_share
# What `build` reads of a row.
READ = (
    *("row", "problem", "reference", "turns", "source", "teacher", "student_prompt_ids", "refine_prompt_ids"),
    *("refine_cut_tokens", "refine_edited_share", "fault", "review_waits"),
    *("y_o.ids", "y_o.passed", "y_o.feedback", "y_r.ids", "y_r.passed"),
)


def rebuilt(table: pa.Table, recipe: Recipe, views: Each[Views], vocabulary: int | None = None) -> pa.Table:
    """The table with the example columns that `build` makes of its rows, whatever stood in them.

    With one teacher the rows name none: who refined them does not matter then.
    """
    recipes, views = recipe.by_teacher, of_each(views)
    rows = dicts(table, READ)
    for row in rows:
        name = row["teacher"] = (row["teacher"] or ONLY) if recipe.teachers else None
        build(row, recipes[name or ONLY], views[name or ONLY], vocabulary)
    for field in (*EXAMPLE, ROW.field("teacher")):
        made = pa.array([row.get(field.name) for row in rows], field.type)
        table = table.set_column(table.schema.get_field_index(field.name), field, made)
    return table


def examples_of(table: pa.Table) -> list[Example]:
    """The examples of the rows that train, in their order; their ids are slices of the table's buffers."""
    rows = dicts(table, ["row", "train", "student_ids", "teacher_ids", "response_ids", "loss_at", "teacher"])
    return [_example(row) for row in rows if row["train"]]


def build(row: dict, recipe: Recipe, views: Views, vocabulary: int | None = None) -> Example | None:
    """Fill the row's example columns; returns the example, or None where the recipe drops it. Ids may be arrays.

    `vocabulary` is how many ids the heads of student and teacher share. An engine can sample an id that only pads its
    own model, and the other model cannot score such a trajectory.
    """
    trajectory, reason = _choose(row, recipe)
    response = None if reason else _response(row, views, trajectory)
    loss_at = None
    if response is not None:
        response, loss_at = with_loss(row, recipe, trajectory, response)
        reason = UNEDITED if loss_at is not None and not len(loss_at) else ""
    if not reason and response is not None and vocabulary is not None and np.max(response) >= vocabulary:
        reason = "token outside the shared vocabulary"
    row |= {"trajectory": trajectory, "train": not reason, "dropped_because": reason}
    if reason:
        return None
    row["student_ids"] = row["student_prompt_ids"]
    row |= {"response_ids": response, "loss_at": loss_at}
    row |= {"teacher_ids": None, "teacher_cut_tokens": None}
    if recipe.loss.has_teacher:
        row["teacher_ids"], row["teacher_cut_tokens"] = _teacher_view(row, recipe, views, trajectory)
    return _example(row)


def _response(row: dict, views: Views, trajectory: str) -> Any:
    """The ids of the trajectory: as an engine sampled them, or y*."""
    return views.solution(row["reference"]) if trajectory == "reference" else row[trajectory]["ids"]


def with_loss(row: dict, recipe: Recipe, trajectory: str, response: Any) -> tuple[Any, Any]:
    """(the response as far as it has loss, the places of its tokens that have some, or None for all of them).

    What comes after the last of them is left out: no token before it depends on it.
    """
    response = response[: math.ceil(recipe.loss.first_share * len(response))]
    if recipe.loss.span == "all" or trajectory != "y_r":
        return response, None
    places = edited_places(row["y_o"]["ids"], row["y_r"]["ids"])
    places = places[places < len(response)]
    return response[: places[-1] + 1 if len(places) else 0], places


def _example(row: dict) -> Example:
    taught = row.get("teacher_ids")
    seen = () if taught is None else taught  # no teacher scores the row
    whose = row.get("teacher") or ONLY
    return Example(row["row"], row["student_ids"], seen, row["response_ids"], whose, row.get("loss_at"))


def _choose(row: dict, recipe: Recipe) -> tuple[str, str]:
    """(trajectory, reason to drop the row, or "" to train on it)."""
    train = recipe.train
    y_o_passed, y_r_passed = bool(part(row, "y_o", "passed")), bool(part(row, "y_r", "passed"))
    trajectory = wanted(recipe, row["row"], y_o_passed)
    if row.get("fault"):
        return trajectory, BAD_ROW
    if row.get("review_waits"):
        return trajectory, WAITS
    in_subset = {
        "all": True,
        "failed": not y_o_passed,
        "passed": y_o_passed,
        "repaired": not y_o_passed and y_r_passed,
        "best": True,  # among its siblings (siblings.py)
    }[train.subset]
    if not in_subset:
        return trajectory, f"not in subset {train.subset}"
    if trajectory == "y_r" and not y_r_passed and train.when_refinement_fails != "train":
        if train.when_refinement_fails == "raw_if_passed" and y_o_passed:
            trajectory = "y_o"
        else:
            return trajectory, "refinement failed"
    if trajectory == "y_r" and strays(_edited_share(row, recipe), recipe.refiner.max_edited_share):
        return trajectory, EDITED
    if trajectory == "reference":
        return trajectory, "" if row["reference"].strip() else NO_REFERENCE
    return trajectory, "" if _some(part(row, trajectory, "ids")) else "empty"


def _edited_share(row: dict, recipe: Recipe) -> float | None:
    """As the stage has measured it. The rows of a corpus may have been made without a limit."""
    y_o, y_r = part(row, "y_o", "ids"), part(row, "y_r", "ids")
    if recipe.refiner.max_edited_share is None or y_o is None or y_r is None:
        return None
    known = row.get("refine_edited_share")
    return edited_share(y_o, y_r) if known is None else known


def _some(ids: Any) -> bool:
    """Whether there are ids: an array, unlike a list, has no truth of its own."""
    return ids is not None and len(ids) > 0


def _teacher_view(row: dict, recipe: Recipe, views: Views, trajectory: str) -> tuple[Any, int]:
    if recipe.view_of(trajectory) == "vanilla":
        view = views.vanilla(row["problem"], row["reference"], **setting_of(row))
        return view.ids, view.cut_tokens
    if _some(row.get("refine_prompt_ids")):
        return row["refine_prompt_ids"], row["refine_cut_tokens"]
    attempt = (part(row, "y_o", name) for name in ("ids", "passed", "feedback"))
    view = views.refine(row["problem"], row["reference"], *attempt, **setting_of(row))
    return view.ids, view.cut_tokens
