"""Whether a corpus holds what a recipe is to train on: refinements are not made after the fact.

    rows of a corpus, the recipe that made it, the recipe at hand  ->  require_held()  ->  nothing, or a UserError

Any trajectory may be chosen on a corpus of train.trajectory=y_r, which refines every rollout. One of repair or of
mixture lacks the refinements that it has saved.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc

from trd_ray.config import Recipe, keys_of, pool_of, stored
from trd_ray.errors import UserError
from trd_ray.problems.corpus import open_corpus
from trd_ray.stream.trajectories import wanted

logger = logging.getLogger(__name__)

COLUMNS = ("row", "fault", "review_waits", "y_o.passed", "y_r.passed")


def require_held(recipe: Recipe, rows: int, passes: int = 1) -> None:
    """Look at the first `rows` rows of the recipe's corpus. Raises UserError, which says what else can be trained.

    In each of several `passes` a row has another number, by which a mixture draws.
    """
    folder = recipe.data.path
    _require_made_so(recipe, Path(folder).expanduser() / "recipe.yaml")
    found = open_corpus(folder).to_table(COLUMNS, pc.field("row") < rows).to_pylist()
    _require_reviewed(folder, found)
    lacking = max(lacks(recipe, [row | {"row": row["row"] + again * rows} for row in found]) for again in range(passes))
    if not lacking:
        return
    held = [y for y in ("repair", "y_o") if not lacks(_with_trajectory(recipe, y), found)]
    other = f"set train.trajectory={' or '.join(held)}, or " if held else ""
    raise UserError(
        f"the corpus {folder} holds no refinement of {lacking} of its first {rows} rollouts, which "
        f"train.trajectory={recipe.train.trajectory} with train.subset={recipe.train.subset} needs: {other}make it "
        "again with trd refine and train.trajectory=y_r, which refines all"
    )


def lacks(recipe: Recipe, rows: Iterable[dict]) -> int:
    """How many rows were to train on a refinement, or be chosen by one, and have none.

    A row has COLUMNS. Those with a fault, and those that wait for a person, do not train.
    """
    return sum(_needs(recipe, row) and row["y_r.passed"] is None for row in rows)


def _needs(recipe: Recipe, row: dict) -> bool:
    passed = row["y_o.passed"]
    subset = recipe.train.subset
    if row["fault"] or row.get("review_waits") or passed is None or (passed and subset in ("failed", "repaired")):
        return False
    if not passed and subset == "passed":
        return False
    return subset == "repaired" or wanted(recipe, row["row"], passed) == "y_r"


def _with_trajectory(recipe: Recipe, trajectory: str) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"trajectory": trajectory})})


def _require_reviewed(folder: str, found: list[dict]) -> None:
    """Warn of rows that wait for a person, and refuse a corpus in which all do."""
    waits = sum(bool(row["review_waits"]) for row in found)
    remedy = f"judge them with `trd review {folder}`, and let the command that made the corpus read the verdicts"
    if waits and waits == len(found):
        raise UserError(f"all {waits} rows of the corpus {folder} wait for review, so none would train: {remedy}")
    if waits:
        logger.warning(
            "%d of %d rows of the corpus %s wait for review and do not train: %s", waits, len(found), folder, remedy
        )


def _require_made_so(recipe: Recipe, made_by: Path) -> None:
    """Refuse what is decided while a corpus is made, and was decided otherwise."""
    if not made_by.is_file():
        return
    try:
        maker = stored(made_by)
    except UserError:
        return  # of another version of the program, whose rows can still be read
    _require_selected(recipe, maker, made_by)
    begun = {one.refiner.begins for one in maker.by_teacher.values() if maker.refines}
    for name, one in recipe.by_teacher.items():
        asked = one.refiner.begins
        if one.refines and begun and asked not in begun:
            key, other = f"{keys_of(pool_of(name))}.from", " or ".join(sorted(begun))
            raise UserError(
                f"{key}={asked} says what refinements are made from, but those of {made_by.parent} were made with "
                f"{key}={other}: set {key}={other}, or make it again with trd refine"
            )


def _require_selected(recipe: Recipe, maker: Recipe, made_by: Path) -> None:
    """Refuse a rule that chose among candidates which the corpus does not hold. It keeps one of each rollout."""
    rules = {name: one.refiner.select for name, one in recipe.by_teacher.items()}
    if not {"best_score", "nearest"} & set(rules.values()):
        return
    made = {name: one.refiner.select for name, one in maker.by_teacher.items()}
    for name, rule in rules.items():
        theirs = {made[name]} if name in made else set(made.values())
        if rule in ("best_score", "nearest") and theirs != {rule}:
            key, other = f"{keys_of(pool_of(name))}.select", " or ".join(sorted(theirs))
            raise UserError(
                f"{key}={rule} chooses while a corpus is made, but {made_by.parent} was made with {key}={other} and "
                f"keeps one refinement of each rollout: set {key}={other}, or make it again with trd refine"
            )
