"""What a comparison has done and has left to do, and every check before anything starts.

    Comparison -> ComparisonPlan: groups of methods that can share engines, the Inputs of every cell, scores of finished
                                  cells

- A cell is finished when its folder holds its evaluation, on each of evaluation.sets too. A finished cell is never run
  again.
- A cell that was begun goes on from its last checkpoint.
- A cell that was begun with another recipe is refused, since its score could not be compared with the others.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from trd_ray.compare.engine_groups import EngineGroup, engine_groups
from trd_ray.compare.grid import GIVEN, Cell, Comparison, cells, recipe
from trd_ray.config import EvaluationSet, Recipe, keys, stored
from trd_ray.config.effects import ANSWERS, LENGTH, NUMBERS, ROWS, SCORES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.preflight.held_out import key_of
from trd_ray.preflight.lengths_of_each import carried
from trd_ray.preflight.overlap import in_common
from trd_ray.preflight.placement import pools
from trd_ray.record.directory import RunDirectory, differences
from trd_ray.record.guards import is_lost
from trd_ray.score.stats import Score, from_json
from trd_ray.session.cluster import Connection
from trd_ray.session.inputs import Inputs, fixed_numbers, prepare

# Keys that a score does not depend on: they may differ between a cell that was begun and the comparison.
MAY_DIFFER = keys.not_affecting(ROWS, NUMBERS, VERDICTS, ANSWERS, SCORES, LENGTH)
OF_A_BASE = keys.affecting(ANSWERS, VERDICTS, SCORES)


class ComparisonPlan:
    def __init__(self, comparison: Comparison, connection: Connection | None = None):
        """Raises UserError for anything that cannot work or would not be a comparison; starts nothing."""
        self.comparison = comparison
        self._connection = connection
        self.path = comparison.path
        self._inputs: dict[str, Inputs] = {}
        self._scores: dict[tuple[str, str], Score] = {}  # of a cell on a set, "" for evaluation.path
        self.groups = engine_groups(comparison)
        bases: dict[str, str] = {}
        self.base_mode = {mode: bases.setdefault(self._base_key(mode), mode) for mode in comparison.modes}
        for cell in self.cells():
            self.inputs(cell)
        for mode in comparison.modes:
            self._different_problems(mode)
        for cell in self.cells():
            self._as_begun(cell)

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they are run."""
        return [cell for group in self.groups for cell in self.cells_of(group)]

    def cells_of(self, group: EngineGroup) -> list[Cell]:
        """The cells of a group. The base comes first, since the engines hold it when they start."""
        first = group == next(g for g in self.groups if g.mode == group.mode)
        bases = []
        if first and self.base_mode[group.mode] == group.mode:
            bases = [Cell("base", group.mode, "", seed) for seed in self.comparison.seeds]
        return bases + cells(self.comparison, group.mode, group.methods)

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell; a final cell has the learning rate that was found best, if its tuning is done."""
        lr = self.best_lr(cell.mode, cell.method) if cell.kind == "final" else None
        return recipe(self.comparison, cell, lr)

    def inputs(self, cell: Cell) -> Inputs:
        """The Inputs of a cell; cells that differ only in name, directory, seed and learning rate share them."""
        r = self.recipe(cell)
        if r.checkpoint.mirror:
            raise UserError(f"{cell.name}: the cells of a comparison have no mirror: set.checkpoint.mirror=null")
        tree = r.model_dump(mode="json", exclude={*GIVEN})
        del tree["learner"]["lr"]
        key = json.dumps([cell.kind == "base", tree])
        if key not in self._inputs:
            job = "evaluate" if cell.kind == "base" else "train"
            try:
                made = self._inputs[key] = prepare(r, job, connection=self._connection, base_is_given=True)
            except UserError as e:
                raise UserError(*(f"{cell.name}: {sentence}" for sentence in e.sentences)) from e
            made.notes += fixed_numbers(r, *pools(r, job))
        found = replace(self._inputs[key], recipe=carried(r, self._inputs[key].recipe))
        if found.held_out is None:
            raise UserError(f"{cell.name} has no problems to be evaluated on: set evaluation.path")
        return found

    def sets(self, mode: str) -> dict[str, EvaluationSet]:
        """What all runs of the mode are scored on beside evaluation.path."""
        return self.recipe(Cell("base", mode, "", self.comparison.seeds[0])).evaluation.sets

    def score(self, cell: Cell, of: str = "") -> Score | None:
        """The score of a finished cell on one of evaluation.sets, or on evaluation.path; None for an unfinished one."""
        if (cell.name, of) not in self._scores:
            needed = [of, *(self.recipe(cell).evaluation.names if cell.kind == "base" else [])]
            found = {name: self.scored(cell, name) for name in needed}
            score = found[of]
            # The last step is recorded after its evaluation: only then is the cell finished.
            done = (
                all(found.values()) and score and len(RunDirectory(self.path / cell.name).read_metrics()) >= score.step
            )
            if not score or not done:
                return None
            self._scores[cell.name, of] = score
        return self._scores[cell.name, of]

    def scored(self, cell: Cell, of: str = "") -> Score | None:
        """The score in the folder of a cell, finished or not."""
        place = self.path / cell.name / "evaluation" / of / f"{'base' if cell.kind == 'base' else 'trained'}.json"
        return from_json(json.loads(place.read_text())) if place.is_file() else None

    def lost_guards(self, cell: Cell) -> list[str]:
        """The guards that the run of a finished cell has lost."""
        guards = [name for name, one in self.sets(cell.mode).items() if one.guard and cell.kind == "final"]
        return [name for name in guards if (score := self.score(cell, name)) and is_lost(score)]

    def base(self, mode: str, seed: int) -> Cell:
        return Cell("base", self.base_mode[mode], "", seed)

    def tuning_cells(self, mode: str, method: str) -> list[Cell]:
        return [cell for cell in cells(self.comparison, mode, [method]) if cell.kind == "tuning"]

    def best_lr(self, mode: str, method: str) -> float | None:
        """The learning rate with the highest Avg@k, the lowest one of equals; None until all are scored."""
        tuned = sorted(self.tuning_cells(mode, method), key=lambda cell: cell.lr or 0)
        if not tuned or any(self.score(cell) is None for cell in tuned):
            return None
        return max(tuned, key=lambda cell: _avg(self.score(cell))).lr

    def _base_key(self, mode: str) -> str:
        """A key that is equal for modes that share their base: the same model, problems and way to answer."""
        resolved = self.inputs(Cell("base", mode, "", self.comparison.seeds[0])).recipe
        return json.dumps(keys.only(resolved.model_dump(mode="json"), OF_A_BASE))

    def _different_problems(self, mode: str) -> None:
        final = self.inputs(Cell("final", mode, next(iter(self.comparison.methods)), 0))
        sets = {"train on": _texts(final.problems), "compare on (evaluation)": _texts(final.held_out)}
        sets |= {f"compare on ({key_of(name)})": _texts(table) for name, table in final.held_out_sets.items()}
        if self.comparison.tuning:
            tuned = self.inputs(self.tuning_cells(mode, next(iter(self.comparison.methods)))[0])
            sets["tune on (tuning.set.evaluation)"] = _texts(tuned.held_out)
            sets["train on while tuning (tuning.set.data)"] = _texts(tuned.problems)
        named = list(sets.items())
        for i, (one, ours) in enumerate(named):
            for other, theirs in named[i + 1 :]:
                trained = [one.startswith("train"), other.startswith("train")]
                if all(trained) or (any(trained) and final.recipe.evaluation.allow_overlap):
                    continue
                if one.startswith("compare") and other.startswith("compare"):
                    continue
                if both := in_common(ours, theirs):
                    raise UserError(
                        f"{mode}: the problems to {one} and those to {other} have {len(both)} in common, such as "
                        f"{both[0][:60]!r}: choose sets without common problems"
                    )

    def _as_begun(self, cell: Cell) -> None:
        place = self.path / cell.name / "recipe.yaml"
        if not place.is_file():
            return
        began, now = (r.model_dump(mode="json") for r in (_stored(place), self.inputs(cell).recipe))
        may_differ = set(MAY_DIFFER)
        if cell.kind == "final" and self.comparison.tuning and self.best_lr(cell.mode, cell.method) is None:
            may_differ.add("learner.lr")
        if cell.kind == "tuning":  # which its choice does not depend on, and which older versions evaluated too
            may_differ.add("evaluation.sets")
        differ = differences(began, now, may_differ)
        if differ:
            raise UserError(
                f"{cell.name} was begun with another recipe: put back {'; '.join(differ)}, set directory to a new "
                f"place, or delete {place.parent}"
            )


def _avg(score: Score | None) -> float:
    assert score is not None
    return score.scores[f"avg@{score.samples}"].value


def _stored(place: Path) -> Recipe:
    try:
        return stored(place)
    except UserError as e:
        raise UserError(f"{e}: delete {place.parent}") from e


def _texts(problems: Any) -> list[str]:
    return [] if problems is None else problems["problem"].to_pylist()


def pending(plan: ComparisonPlan, group: EngineGroup) -> Iterator[Cell]:
    """Unfinished cells one by one; each is looked at only when its turn has come, since others finish meanwhile."""
    for cell in plan.cells_of(group):
        if plan.score(cell) is None:
            yield cell
