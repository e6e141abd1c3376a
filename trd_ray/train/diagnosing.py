"""What of a step is looked at token by token, and kept beside its rows: the recipe's `diagnostics`.

    before the update   some rows -> learner.score()        -> y_o and y_r, under both teacher views --+
    the update          what trains -> learner.step()       -> the trained trajectories ---------------+-> `scored`

- `diagnostics.rows` are scored with the weights that are about to be updated: those that sampled them, where sampling
  is on policy. What trains is scored so too: an update may have dropout, or come after another one of its step.
- The first step is looked at, and then every `diagnostics.every_steps`-th after it.
- Nothing here touches what is learned. A learner that is lost meanwhile is replaced, and asked again.
"""

from collections.abc import Callable

import pyarrow as pa

from trd_ray.config import ONLY, Each, Recipe
from trd_ray.distill.batches import Example
from trd_ray.rows import dicts
from trd_ray.stream.diagnosed import Bounds, looks
from trd_ray.token_values import ScoredTrajectory, TokenValues, with_column
from trd_ray.views import Views

Looked = dict[int, list[ScoredTrajectory]]  # by row


class Diagnosing:
    def __init__(self, recipe: Recipe, views: Each[Views], bounds: Bounds):
        self.recipe, self.views, self.bounds = recipe, views, bounds

    def due(self, step: int) -> bool:
        """Whether rows of the step, counted from 0, are scored besides those that train."""
        keys = self.recipe.diagnostics
        return keys.rows > 0 and step % keys.every_steps == 0

    def look(self, table: pa.Table, score: Callable[[list[Example]], TokenValues]) -> Looked:
        """What `score` (the learner's) finds of some of the step's rows."""
        asked = looks(table, self.recipe.diagnostics.rows, self.recipe, self.views, self.bounds)
        values = score([one.example for one in asked]).by_key()
        found: Looked = {}
        for number, one in enumerate(asked):
            found.setdefault(one.row, []).append(ScoredTrajectory(one.trajectory, one.view, False, values[number]))
        return found

    def kept(self, table: pa.Table, trained: TokenValues, looked: Looked) -> pa.Table:
        """The step's table with its column `scored`: what a row trained on first, null for a row without anything."""
        by_row, recipes = trained.by_key(), self.recipe.by_teacher
        of_rows: list[list[ScoredTrajectory]] = []
        for row in dicts(table, ["row", "trajectory", "teacher"]):
            number, trajectory = row["row"], row["trajectory"]
            found = list(looked.get(number, []))
            if number in by_row:
                teacher = (row["teacher"] or ONLY) if self.recipe.teachers else ONLY
                view = recipes[teacher].view_of(trajectory)
                found.insert(0, ScoredTrajectory(trajectory, view, True, by_row[number]))
            of_rows.append(found)
        return with_column(table, of_rows)
