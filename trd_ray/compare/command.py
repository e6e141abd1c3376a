"""`trd compare`: every cell that is left, one after the other, over engines that are started once for all of them.

    ComparisonPlan -> for each group: engines -> base, tuning, final cells, each a run of its own (`train_run`)
                   -> cells/, comparison.md, comparison.json, report.html
    tables of cells -> from_cells() -> the same tables without a run

- A cell begins by giving the engines the base weights. So it is the run that `trd train` would make of its recipe, in
  an ordinary run directory.
- If a cell fails, that is recorded and the others go on. Engines that failed with it are started again.
- Ctrl-C leaves a checkpoint of the cell under way, and the next start goes on from there.
"""

import contextlib
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml
from rich.console import Console

from trd_ray.compare import cell_tables, cells, grid, report, results
from trd_ray.compare.engine_groups import EngineGroup
from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan, pending
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.preflight import placement, shown
from trd_ray.record.claim import claim
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display, console_for_results
from trd_ray.record.markdown import visible
from trd_ray.record.summary import write_summary
from trd_ray.report.written import report as report_html
from trd_ray.report.written import write_report
from trd_ray.score.stats import Score
from trd_ray.session.beginning import Running, begin, name_set_aside
from trd_ray.session.cluster import Connection
from trd_ray.session.endings import cause
from trd_ray.session.inputs import Inputs
from trd_ray.session.last_words import beating
from trd_ray.session.session import Session
from trd_ray.session.stop import Stopped, StopSignals
from trd_ray.train.loop import train_run

FROM_CELLS = "from-cells"  # the folder of tables that were made without runs


def dry_run(name: str, overrides: list[str], gpu_gib: float | None = None) -> int:
    """Print every cell with its state, the sum of what is left, and whether the cluster at hand holds it."""
    comparison = grid.load(name, overrides)
    console = console_for_results()
    lacking = []
    with Connection(grid.any_recipe(comparison)) as connection:
        plan = ComparisonPlan(comparison, connection)
        for note in dict.fromkeys(note for cell in plan.cells() for note in plan.inputs(cell).notes):
            console.print(note, markup=False, soft_wrap=True)
        console.print(report.grid(plan))
        machines = connection.machines()
        for group in plan.groups:
            placed = _largest(plan, group).plan(machines, gpu_gib)
            console.print(f"\n{group}: {', '.join(group.methods)}\n{shown.render(placed)}", markup=False)
            lacking += placed.reasons
    return 2 if lacking else 0


def run(name: str, overrides: list[str]) -> int:
    """Run what is left, and write the tables; returns 1 if a cell failed, else 0."""
    comparison = grid.load(name, overrides)
    failures: dict[str, str] = {}
    with begin("compare", comparison.path, grid.any_recipe(comparison)) as beginning:
        console = console_for_results()
        plan = ComparisonPlan(comparison, beginning.connection)
        every_cell = plan.cells()
        console.print(f"reading models and problems of {len(every_cell)} cells", markup=False)
        inputs = [plan.inputs(cell) for cell in every_cell]
        beginning.require(*inputs)
        plan.path.mkdir(parents=True, exist_ok=True)
        beginning.claimed(RunDirectory(plan.path, claim(plan.path)), *inputs)
        write_atomically(plan.path / "comparison.yaml", yaml.safe_dump(comparison.model_dump(), sort_keys=False))
        with StopSignals():  # a signal that comes after the last cell does not keep the tables from being written
            try:
                if any(True for group in plan.groups for _ in pending(plan, group, failures)):
                    with beginning.running() as running:
                        work = Work(plan, running, failures)
                        for patient in (True, False):
                            for group in plan.groups:
                                work.run(group, patient)
            finally:
                found = report.write(plan, failures)
                with beating():
                    report_html(plan.path)
    console.print(report.rendered(found))
    console.print(f"everything is in {plan.path}", soft_wrap=True, markup=False)
    return 1 if failures else 0


def from_cells(name: str, overrides: list[str], folder: str) -> int:
    """Make the tables from the cells in a folder, such as committed ones, into `from-cells` of the comparison's place.

    Returns 1 if cells of the comparison are not there, else 0.
    """
    comparison = grid.load(name, overrides)
    tables = cell_tables.read(Path(folder))
    found = results.from_cells(comparison, tables, {}, results.missing(comparison, tables))
    if not found["modes"]:
        raise UserError(f"{folder} holds no cell of {comparison.name}: name the folder `cells` of that comparison")
    path = comparison.path / FROM_CELLS
    report.write_found(path, found, comparison, tables)
    write_report([path])
    console = console_for_results()
    console.print(report.rendered(found))
    console.print(f"made from {len(tables)} cells; everything is in {path}", soft_wrap=True, markup=False)
    return 1 if found["unfinished"] else 0


@dataclass
class Work:
    """The work on the cells; `failures` gets the reason for each cell that fails."""

    plan: ComparisonPlan
    running: Running
    failures: dict[str, str]
    console: Console = field(default_factory=console_for_results)
    spent: float = 0.0  # seconds of finished cells
    earned: float = 0.0  # estimated cost of those cells, in rollouts

    def run(self, group: EngineGroup, patient: bool) -> None:
        left = pending(self.plan, group, self.failures, patient)
        cell = next(left, None)
        while cell is not None:
            try:
                with self._engines(group) as engines:
                    while cell is not None:
                        self._attempt(cell, engines)
                        cell = next(left, None)
                        if _broken(engines):
                            break
            except (Stopped, KeyboardInterrupt):
                raise
            except Exception as e:  # the engines did not start
                for waiting in [] if cell is None else [cell, *left]:
                    self._failed(waiting, e)
                return

    @contextmanager
    def _engines(self, group: EngineGroup) -> Iterator[Session]:
        """Running pools with the weights of the base, which the cells of the group borrow."""
        inputs = _largest(self.plan, group)
        directory = RunDirectory(self.plan.path / group.mode)
        with self._display(0, 0) as display:
            session = Session(
                inputs, directory, display, self.running.stop, self.running.machines, door=self.running.door
            )
            try:
                display.phase(f"{group}: starting engines")
                begin = time.time()
                session.start(student_path=inputs.student_path, version=0)
                session.wait_until_started()
                self._say(f"{group}: engines started in {time.time() - begin:.0f} s")
            except BaseException:
                session.close()
                raise
        try:
            yield session
        finally:
            session.close()

    def _attempt(self, cell: Cell, engines: Session) -> None:
        begin = time.time()
        try:
            score = self._one(cell, engines)
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as e:
            self._failed(cell, e)
            return
        self.spent += time.time() - begin
        self.earned += self._cost(cell)
        done, everything = self._progress()
        avg = score.scores[f"avg@{score.samples}"]
        left = self.spent / self.earned * sum(map(self._cost, self._left()))
        lost = "".join(f"guard {name} lost  " for name in self.plan.lost_guards(cell))
        self._say(
            f"[{done}/{everything}] {cell.name}  avg@{score.samples} {100 * avg.value:.1f}  {lost}"
            f"{time.time() - begin:.0f} s, left about {left / 60:.0f} min"
        )

    def _one(self, cell: Cell, engines: Session) -> Score:
        """Run the cell from where it was left; returns its score."""
        plan = self.plan
        if plan.lacks_rate(cell):
            raise UserError(f"the learning rate of {cell.mode}/{cell.method} is not tuned, since a tuning cell failed")
        inputs = plan.inputs(cell)
        recipe = inputs.recipe
        begun = (recipe.directory / "recipe.yaml").is_file()
        directory = RunDirectory.create(recipe.directory, recipe, resume=begun)
        try:
            if inputs.set_aside:
                name_set_aside(directory.path, inputs.set_aside)
            done, folder = directory.resume_point() or (0, None)
            steps = 0 if cell.kind == "base" else inputs.total_steps
            if recipe.stream.max_staleness == "never":
                # The rollouts come from the initial weights, which these engines may not hold.
                done = 0
                folder = None
            with self._display(steps, done) as display:
                display.phase(f"{cell.name}: starting")
                session = engines.lend(inputs, directory, display)
                with session.door:
                    if cell.kind == "base":
                        for of, problems in {"": inputs.held_out, **inputs.held_out_sets}.items():
                            if plan.scored(cell, of) is None:
                                session.evaluate("base", 0, 0, problems, of=of)
                        write_summary(directory)
                    else:
                        if cell.kind == "final":
                            base = plan.path / plan.base(cell.mode, cell.seed, cell.base).name
                            copy_base(base / "evaluation", directory.path / "evaluation")
                        directory.rewind(done)
                        session.forget_weights()
                        train_run(session, done, folder)
        finally:
            directory.release()
        score = plan.score(cell)
        assert score is not None
        cells.kept(plan, cell)
        return score

    def _failed(self, cell: Cell, e: Exception) -> None:
        self.failures[cell.name] = why = visible(cause(e))
        place = self.plan.path / "failures" / f"{cell.name.replace('/', '-')}.txt"
        place.parent.mkdir(exist_ok=True)
        place.write_text("".join(traceback.format_exception(e)))
        self._say(f"{cell.name} failed: {why} (more in {place})")

    def _display(self, steps: int, done: int) -> Display:
        # Without a terminal, one line is printed for a cell; its steps are in its train.log.
        return Display(steps, Console(quiet=not self.console.is_terminal), done=done)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _left(self) -> list[Cell]:
        return [c for c in self.plan.cells() if c.name not in self.failures and not self.plan.is_done(c)]

    def _progress(self) -> tuple[int, int]:
        everything = len(self.plan.cells())
        return everything - len(self._left()) - len(self.failures), everything

    def _cost(self, cell: Cell) -> float:
        """How many rollouts, refinements and answers a cell samples, from which its seconds are estimated."""
        return sum(report.samples(self.plan.inputs(cell), trains=cell.kind != "base"))


def copy_base(base: Path, into: Path) -> None:
    """Copy the scores of the base with the same seed, so that a cell's summary and its guards compare with them."""
    for file in [*base.glob("base.*"), *base.glob("*/base.*")]:
        place = into / file.relative_to(base)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)


def _largest(plan: ComparisonPlan, group: EngineGroup) -> Inputs:
    """Inputs of a run that needs every pool that any run of the group needs."""
    finals = [plan.inputs(c) for c in plan.cells_of(group) if c.kind == "final"]
    return next((i for i in finals if placement.needs_refiner(i.recipe)), finals[0])


def _broken(engines: Session) -> bool:
    asked: list[Any] = [pool.status.remote() for pool in engines.pools.values()]
    with contextlib.suppress(Exception):
        return any(status["failure"] for status in ray.get(asked, timeout=engines.recipe.heartbeat_s))
    return True
