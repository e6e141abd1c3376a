"""What a row trains: verdicts become an example, or a reason why the row gives none.

    row (y_o, y_r, verdicts) -> trajectory, train or dropped_because, student view, teacher view, response

This module is pure, apart from the tokenizers inside `Views`.
"""

from trd_ray.config import Recipe
from trd_ray.distill.batches import Example
from trd_ray.rows import part
from trd_ray.views import Views


def build(row: dict, recipe: Recipe, views: Views, vocabulary: int | None = None) -> Example | None:
    """Fill the row's example columns; returns the example, or None where the recipe drops it.

    `vocabulary` is how many ids the heads of student and teacher share. An engine can sample an id that only pads its
    own model, and the other model cannot score such a trajectory.
    """
    trajectory, reason = _choose(row, recipe)
    if not reason and vocabulary is not None and max(row[trajectory]["ids"]) >= vocabulary:
        reason = "token outside the shared vocabulary"
    row |= {"trajectory": trajectory, "train": not reason, "dropped_because": reason}
    if reason:
        return None
    row["student_ids"] = row["student_prompt_ids"]
    row["response_ids"] = row[trajectory]["ids"]
    row["teacher_ids"], row["teacher_cut_tokens"] = _teacher_view(row, recipe, views, trajectory)
    return Example(row["row"], row["student_ids"], row["teacher_ids"], row["response_ids"])


def _choose(row: dict, recipe: Recipe) -> tuple[str, str]:
    """(trajectory, reason to drop the row, or "" to train on it)."""
    train = recipe.train
    y_o_passed, y_r_passed = bool(part(row, "y_o", "passed")), bool(part(row, "y_r", "passed"))
    in_subset = {
        "all": True,
        "failed": not y_o_passed,
        "passed": y_o_passed,
        "repaired": not y_o_passed and y_r_passed,
    }[train.subset]
    trajectory = train.trajectory
    if not in_subset:
        return trajectory, f"not in subset {train.subset}"
    if trajectory == "y_r" and not y_r_passed and train.when_refinement_fails != "train":
        if train.when_refinement_fails == "raw_if_passed" and y_o_passed:
            trajectory = "y_o"
        else:
            return trajectory, "refinement failed"
    return trajectory, "" if part(row, trajectory, "ids") else "empty"


def _teacher_view(row: dict, recipe: Recipe, views: Views, trajectory: str) -> tuple[list[int], int]:
    if trajectory != recipe.train.trajectory:
        # A raw rollout replaces a failed refinement: the refine view would show the teacher the text that it scores.
        view = views.vanilla(row["problem"], row["reference"])
        return view.ids, view.cut_tokens
    if recipe.teacher.view == "refine" and row["refine_prompt_ids"]:
        return row["refine_prompt_ids"], row["refine_cut_tokens"]
    attempt = (part(row, "y_o", name) for name in ("ids", "passed", "feedback"))
    view = views.teacher(row["problem"], row["reference"], *attempt)
    return view.ids, view.cut_tokens
