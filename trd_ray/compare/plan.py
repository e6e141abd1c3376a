"""What a comparison has done and has left to do, and every check before anything starts.

    Comparison -> ComparisonPlan: groups of methods that can share engines, the Inputs of every cell, scores of finished
                                  cells

- A cell is finished when its folder holds its evaluation, on each of evaluation.sets too. A finished cell is never run
  again.
- A run or a tuning that was not finished here, but has a table in `cells`, was finished elsewhere. A base is always
  scored here, since the runs show what its answers were.
- A cell that was begun goes on from its last checkpoint.
- A cell that was begun with another recipe is refused, since its score could not be compared with the others.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trd_ray.compare.cell_tables import FOLDER, OF_A_SCORE, CellTable, as_known, digest, read_table, recipe_of
from trd_ray.compare.design import GIVEN, Comparison
from trd_ray.compare.engine_groups import EngineGroup, engine_groups
from trd_ray.compare.grid import Cell, cells, first_base, recipe
from trd_ray.compare.tuning import chosen, rates
from trd_ray.config import EvaluationSet, Recipe, keys, stored
from trd_ray.config.effects import ANSWERS, SCORES, VERDICTS
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
MAY_DIFFER = keys.not_affecting(*OF_A_SCORE)
OF_A_BASE = keys.affecting(ANSWERS, VERDICTS, SCORES)


class ComparisonPlan:
    def __init__(self, comparison: Comparison, connection: Connection | None = None):
        """Raises UserError for anything that cannot work or would not be a comparison; starts nothing."""
        self.comparison = comparison
        self._connection = connection
        self.path = comparison.path
        self._recipes: dict[tuple[Cell, float | None], Recipe] = {}
        self._inputs: dict[str, Inputs] = {}
        self._inputs_of: dict[str, tuple[Recipe, Inputs]] = {}  # of a cell, and the recipe that they are of
        self._scores: dict[tuple[str, str], Score] = {}  # of a cell on a set, "" for evaluation.path
        self.elsewhere = self._finished_elsewhere()
        self.groups = engine_groups(comparison)
        bases: dict[str, str] = {}
        self.base_mode = {mode: bases.setdefault(self._base_key(mode), mode) for mode in comparison.modes}
        for cell in self.cells():
            self.inputs(cell)
        for mode in comparison.modes:
            for base in comparison.base_names:
                self._different_problems(mode, base)
        for cell in self.cells():
            self._as_begun(cell)
            self._as_taken(cell)

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they are run."""
        return [cell for group in self.groups for cell in self.cells_of(group)]

    def cells_of(self, group: EngineGroup) -> list[Cell]:
        """The cells of a group. The base comes first, since the engines hold it when they start."""
        comparison, mode = self.comparison, group.mode
        found = []
        if group == next(g for g in self.groups if (g.mode, g.base) == (mode, group.base)):
            sharing = [other for other, base_mode in self.base_mode.items() if base_mode == mode]
            seeds = sorted({seed for other in sharing for seed in comparison.seeds_of_base(other)})
            found += [Cell("base", mode, "", seed, base=group.base) for seed in seeds]
        if group.base == comparison.base_names[0]:
            tuned = [m for m in group.methods if comparison.tuned_for(mode, m) == m]
            found += [cell for method in tuned for cell in self.tuning_cells(mode, method)]
        return found + [c for c in cells(comparison, mode, group.methods, group.base) if c.kind == "final"]

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell; a final cell has the learning rate that was found best, if its tuning is done."""
        lr = self.best_lr(cell.mode, cell.method) if cell.kind == "final" else None
        if (cell, lr) not in self._recipes:
            self._recipes[cell, lr] = recipe(self.comparison, cell, lr)
        return self._recipes[cell, lr]

    def inputs(self, cell: Cell) -> Inputs:
        """The Inputs of a cell; cells that differ only in name, directory, seed and learning rate share them."""
        r = self.recipe(cell)
        made = self._inputs_of.get(cell.name)
        if made is None or made[0] is not r:
            made = self._inputs_of[cell.name] = (r, self._prepared(cell, r))
        return made[1]

    def _prepared(self, cell: Cell, r: Recipe) -> Inputs:
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
        return self.recipe(first_base(self.comparison, mode)).evaluation.sets

    def is_done(self, cell: Cell) -> bool:
        return self.taken_elsewhere(cell) is not None or self.score(cell) is not None

    def taken_elsewhere(self, cell: Cell) -> CellTable | None:
        """The table of a cell that was finished elsewhere, with the learning rate that is the best one here."""
        table = self.elsewhere.get(cell.name)
        if table and cell.kind == "final" and self.comparison.tuning:
            return table if table.lr == self.best_lr(cell.mode, cell.method) else None
        return table

    def score(self, cell: Cell, of: str = "") -> Score | None:
        """The score of a cell that was finished here on one of evaluation.sets, or on evaluation.path."""
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

    def base(self, mode: str, seed: int, base: str | None = None) -> Cell:
        return Cell(
            "base", self.base_mode[mode], "", seed, base=self.comparison.base_names[0] if base is None else base
        )

    def tuning_cells(self, mode: str, method: str) -> list[Cell]:
        """The cells whose best one gives a method its learning rate; they become more while the grid widens."""
        t = self.comparison.tuning
        if t is None:
            return []
        tried = rates(t.learning_rates, lambda lr: self._tuned(mode, method, lr), t.widenings)
        return [self._tuning_cell(mode, method, lr) for lr in tried]

    def best_lr(self, mode: str, method: str) -> float | None:
        """The learning rate with the highest Avg@k, the lowest one of equals; None until all are scored."""
        tried = [cell.lr for cell in self.tuning_cells(mode, method) if cell.lr is not None]
        return chosen(tried, lambda lr: self._tuned(mode, method, lr))

    def lacks_rate(self, cell: Cell) -> bool:
        """Whether the learning rate of a final cell is not tuned yet."""
        tunes = cell.kind == "final" and self.comparison.tuning is not None
        return tunes and self.best_lr(cell.mode, cell.method) is None

    def waits(self, cell: Cell, group: EngineGroup) -> bool:
        """Whether a final cell of a group needs a learning rate that is tuned with the engines of another one."""
        return self.lacks_rate(cell) and self.comparison.tuned_for(cell.mode, cell.method) not in group.methods

    def _tuning_cell(self, mode: str, method: str, lr: float) -> Cell:
        t = self.comparison.tuning
        assert t is not None
        return Cell("tuning", mode, self.comparison.tuned_for(mode, method), t.seed, lr, self.comparison.base_names[0])

    def _tuned(self, mode: str, method: str, lr: float) -> float | None:
        cell = self._tuning_cell(mode, method, lr)
        if table := self.taken_elsewhere(cell):
            return table.avg()
        score = self.score(cell)
        return None if score is None else score.scores[f"avg@{score.samples}"].value

    def _base_key(self, mode: str) -> str:
        """A key that is equal for modes that share their bases: the same models, problems and way to answer."""
        seed = self.comparison.seeds_of_base(mode)[0]
        cells_of_each = [Cell("base", mode, "", seed, base=base) for base in self.comparison.base_names]
        resolved = [self.inputs(cell).recipe.model_dump(mode="json") for cell in cells_of_each]
        return json.dumps([keys.only(tree, OF_A_BASE) for tree in resolved])

    def _different_problems(self, mode: str, base: str) -> None:
        method = self.comparison.methods_of(mode)[0]
        final = self.inputs(Cell("final", mode, method, self.comparison.seeds_of(method)[0], base=base))
        sets = {"train on": _texts(final.problems), "compare on (evaluation)": _texts(final.held_out)}
        sets |= {f"compare on ({key_of(name)})": _texts(table) for name, table in final.held_out_sets.items()}
        if self.comparison.tuning and base == self.comparison.base_names[0]:
            tuned = self.inputs(self.tuning_cells(mode, method)[0])
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
        if self.lacks_rate(cell):
            may_differ.add("learner.lr")
        if cell.kind == "tuning":  # which its choice does not depend on, and which older versions evaluated too
            may_differ.add("evaluation.sets")
        if differ := differences(began, now, may_differ):
            raise UserError(
                f"{cell.name} was begun with another recipe: put back {'; '.join(differ)}, set directory to a new "
                f"place, or delete {place.parent}"
            )

    def _finished_elsewhere(self) -> dict[str, CellTable]:
        found = {}
        for place in sorted((self.path / FOLDER).rglob("*.jsonl")):
            cell = (table := read_table(place)).cell
            if place != self.table_of(cell):
                raise UserError(f"{place} is the table of {cell.name}: move it to {self.table_of(cell)}, or delete it")
            if cell.kind != "base" and self.score(cell) is None:
                found[cell.name] = table
        return found

    def table_of(self, cell: Cell) -> Path:
        """Where the table of a finished cell is, or will be."""
        return self.path / FOLDER / f"{cell.name}.jsonl"

    def _as_taken(self, cell: Cell) -> None:
        table = self.elsewhere.get(cell.name)
        if table is None:
            return
        place, inputs = self.table_of(cell), self.inputs(cell)
        if not table.recipe:
            raise UserError(f"{place} is of an older version, which kept no recipe: delete it, and its cell is run")
        if table.last.step != inputs.total_steps:
            raise UserError(
                f"{place} ends at step {table.last.step} of {inputs.total_steps}: put it back, or delete it"
            )
        now = recipe_of(inputs.recipe)
        # A final one with another rate than the one that is tuned here does not count as done.
        rate = {"learner.lr"} if cell.kind == "final" and self.comparison.tuning else set()
        differ = differences(as_known(table.recipe, now), now, MAY_DIFFER | rate)
        for of, problems in {"": inputs.held_out, **inputs.held_out_sets}.items():
            graded = table.last.graded.get(of)
            if problems is not None and (not graded or graded.problems != digest(problems["problem_id"].to_pylist())):
                differ.append(f"the problems of {key_of(of)}")
        if differ:
            remedy = f"put back {'; '.join(differ)}, set directory to a new place, or delete it"
            raise UserError(f"{place} is of another recipe: {remedy}")


def _stored(place: Path) -> Recipe:
    try:
        return stored(place)
    except UserError as e:
        raise UserError(f"{e}: delete {place.parent}") from e


def _texts(problems: Any) -> list[str]:
    return [] if problems is None else problems["problem"].to_pylist()


def pending(
    plan: ComparisonPlan, group: EngineGroup, failed: Mapping[str, str], patient: bool = False
) -> Iterator[Cell]:
    """Unfinished cells one by one, each looked at only when its turn has come: others finish, and grids widen.

    `patient`: those are left out whose learning rate another group will tune.
    """
    seen = set(failed)
    while True:
        left = (c for c in plan.cells_of(group) if c.name not in seen and not plan.is_done(c))
        cell = next((c for c in left if not (patient and plan.waits(c, group))), None)
        if cell is None:
            return
        seen.add(cell.name)
        yield cell
