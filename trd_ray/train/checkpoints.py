"""When a run saves its state, how it learns that a save is complete, and which checkpoints stay.

    begin(steps) -> the learner copies its state and goes on -> files are written and read back
                 -> finish() -> named, old ones deleted, its time is told

The rules:

- A state that may be unsound never replaces one that is sound. If a weight is not finite, the run ends. If a step could
  make no update, its checkpoint is put off until a step makes one.
- One checkpoint is written at a time. One that is due by checkpoint.every_s waits until the one before it is written.
- One that ended with its worker group, before it was whole, is begun again after the next step.
- If the disk is full, the run pauses until the checkpoint is written, of the state that the learner has by then.
- A run that is killed meanwhile leaves a folder without a name, which `--resume` removes.
"""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.distill.trainer import Trainer
from trd_ray.errors import RunFailed, UserError
from trd_ray.files import is_full
from trd_ray.record.directory import RunDirectory
from trd_ray.record.room import Room

POLL_S = 1.0
LOST_STEPS = 3  # so many steps in a row without an update end the run: what broke does not heal
ANSWER_S = 60  # for the ranks to answer; they are idle when they are asked, unless one hangs


class Checkpoints:
    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        trainer: Trainer,
        saved: int,
        show: Callable[[str], object] = lambda phase: None,
        say: Callable[[str], object] = lambda text: None,
        outlive: Callable[[Callable[[], Any]], Any] = lambda command: command(),
        rows_sha256: Callable[[], str | None] = lambda: None,
        room: Room | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        committed: Callable[[int, Path], object] = lambda steps, folder: None,
    ):
        """The newest checkpoint holds `saved` steps, 0 for the initial weights. `show` is told what is being done.

        - `say` is told what a checkpoint took.
        - `outlive` does a command again in another worker group, if its own is lost (see LivingLearner).
        - `rows_sha256` says which rows made the weights, by the ledger (see trd_ray.lineage).
        - `room` waits while the disk is full; without it a full disk ends the run.
        - `committed` is told of each checkpoint that has its name.
        """
        self.show = show
        self.say = say
        self.outlive = outlive
        self.rows_sha256 = rows_sha256
        self.room = room
        self.monotonic = monotonic
        self.committed = committed
        self.began = monotonic()  # when the newest checkpoint did
        self.waited_s = 0.0  # by the run, for the newest checkpoint
        self.now: tuple[int, int, dict[str, Any]] | None = None  # steps, version, metrics of the learner's state
        self.again = False  # the checkpoint under way was lost with its worker group
        self.took: dict[str, float] = {}  # what the last one that was finished took; see `take_seconds`
        self.recipe = recipe
        self.directory = directory
        self.trainer = trainer
        self.saved = saved
        self.timeout_s = recipe.learner.step_timeout_s
        self.writing: tuple[int, Path] | None = None
        self.put_off: str | None = None  # why the last checkpoint that was due is not begun yet
        self.asked = False  # whether somebody wants one after the step under way
        self.at_once = False  # whether it shall not wait for that, if none is under way
        self.lost = 0  # how many steps in a row, up to now, made no update

    @property
    def begun(self) -> int:
        """The steps in the newest checkpoint, which may not be written yet."""
        return self.writing[0] if self.writing else self.saved

    def due(self, steps: int, total_steps: int) -> bool:
        c = self.recipe.checkpoint
        late = c.every_s is not None and self.monotonic() - self.began >= c.every_s and not self.writing
        wanted = self.asked or bool(self.put_off) or self.again or late
        return wanted or steps % c.every_steps == 0 or steps == total_steps

    def if_due(self, steps: int, total_steps: int, version: int, metrics: dict[str, Any]) -> None:
        """Called after every step: ends a run that cannot be updated, names what is complete, begins the next if due.

        Raises what `require_updates`, `begin` and `finish` raise.
        """
        self.require_updates(steps, metrics)
        self.now = steps, version, metrics
        self.finish(wait=False)
        if self.due(steps, total_steps):
            self.save(steps, version, metrics)

    def save(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        """`begin`, unless a checkpoint holds the state after `steps` steps already."""
        if steps != self.begun:
            self.show(f"writing checkpoint {steps}")
            self.begin(steps, version, metrics)
            self.show("training")

    def holds(self, steps: int, version: int, metrics: dict[str, Any]) -> bool:
        """`save`, and wait until it is named; False where it was put off, or was lost with its worker group."""
        self.save(steps, version, metrics)
        self._finish(wait=True)
        return self.saved == steps

    def hurry(self) -> None:
        """Somebody wants one as soon as the learner's state can be saved: a node is about to go."""
        self.asked = self.at_once = True

    def while_rows_are_awaited(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        """Write the one that is wanted at once, and name one that is complete; the learner has done `steps` steps."""
        if self.at_once:
            self.save(steps, version, metrics)
            self.asked = self.at_once = False
        self.finish(wait=False)

    def require_updates(self, steps: int, metrics: dict[str, Any]) -> None:
        """Raise RunFailed if LOST_STEPS steps in a row skipped all their updates, or if a weight is not finite.

        No later step can make such a weight finite. `metrics` are those of the step `steps`.
        """
        if not metrics.get("updates") and not metrics.get("skipped_updates"):  # all its rows were dropped
            return
        lost = metrics["skipped_updates"] > 0 and not metrics["updates"]
        self.lost = self.lost + 1 if lost else 0
        weights = metrics.get("weights_not_finite", 0)
        if not weights and self.lost < LOST_STEPS:
            return
        where = f"step {steps}" if self.lost < 2 else f"steps {steps - self.lost + 1} to {steps}"
        what = " and ".join(_not_finite(metrics))
        if weights:
            what += f"{' and ' if what else ''}{weights:.0f} numbers of the weights"
        raise RunFailed(f"no update could be made in {where}: not finite are {what}. {self._remedy()}")

    def begin(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        """Save the learner's state after `steps` steps; `metrics` are those of the last step.

        Returns when the state is copied, or with checkpoint.asynchronous=false when it is written. If the step made no
        update, since its loss or gradient is not finite, the checkpoint is put off. Raises what `finish` raises, and
        RunFailed if the state is not finite.
        """
        if steps == self.begun:
            return
        self.now = steps, version, metrics
        self._finish(wait=True)
        if steps == self.begun:  # written while the disk was full
            return
        odd = _not_finite(metrics)
        if odd and not metrics.get("updates"):
            self.again = False
            self.put_off = f"checkpoint {steps} is not written: not finite in that step are {' and '.join(odd)}"
            return
        measured = {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        rows = steps * self.recipe.rollouts_per_step
        made_by = self.rows_sha256()
        state = {"version": version, "rows": rows, "rows_sha256": made_by, "metrics": measured}
        self.began = self.monotonic()
        folder, broken = self.outlive(lambda: self._begin(steps, state, made_by))
        if broken:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunFailed(f"checkpoint {steps} is not written: {broken}. {self._remedy()}")
        self.writing = (steps, folder)
        self.waited_s = self.monotonic() - self.began
        self.put_off, self.again = None, False
        self.asked = self.at_once = False
        if not self.recipe.checkpoint.asynchronous:
            self._finish(wait=True)

    def _begin(self, steps: int, state: dict[str, Any], made_by: str | None) -> tuple[Path, str | None]:
        """A new folder, and what is wrong with the state that is to be written into it."""

        def new_folder() -> Path:
            return self.directory.begin_checkpoint(steps, state)

        try:
            folder = self.room.having(f"checkpoint {steps}", new_folder) if self.room else new_folder()
        except OSError as e:
            raise _unwritten(steps, self.directory.path / "checkpoints", str(e)) from e
        more: dict[str, Any] = {} if made_by is None else {"rows_sha256": made_by}
        return folder, self.trainer.call("begin_checkpoint", self.timeout_s, folder=str(folder), **more)

    def forget(self) -> None:
        """The worker group has ended: what there is of a checkpoint that it wrote is deleted, and it is due again."""
        self.directory.delete_unfinished()
        if self.writing is not None:
            self.writing, self.again = None, True

    def take_seconds(self) -> dict[str, float]:
        """What the checkpoint took that was finished since the last call, and for how much of it the run waited."""
        took, self.took = self.took, {}
        return took

    def finish(self, wait: bool) -> None:
        """Name the checkpoint under way if all of it is written, then delete old ones; `wait` waits for that.

        Raises UserError if it could not be written, and TimeoutError if that takes too long. With `wait`, at the end of
        the run, raises RunFailed if the last checkpoint was put off.
        """
        self._finish(wait)
        while wait and self.again and self.now:  # after the last step there is no next one that it could wait for
            self.begin(*self.now)
            self._finish(wait)
        if wait and self.put_off:
            raise RunFailed(f"{self.put_off}. {self._remedy()}")

    def _finish(self, wait: bool) -> None:
        if self.writing is None:
            return
        steps, folder = self.writing
        waits = self.monotonic()
        deadline = time.monotonic() + self.timeout_s
        done, problem = self._ask(POLL_S if wait else 0)
        while wait and not done:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.timeout_s:.0f} s (learner.step_timeout_s) for checkpoint {steps} to be written to "
                    f"{folder.parent}"
                )
            done, problem = self._ask(POLL_S)
        self.waited_s += self.monotonic() - waits
        if not done or self.writing is None:
            return
        self.writing = None
        if problem:
            shutil.rmtree(folder, ignore_errors=True)
            if is_full(problem) and self.room and self.now:
                return self._write_once_there_is_room(self.room, *self.now)
            raise _unwritten(steps, folder.parent, problem)
        # Imported here since it imports all of torch.
        from trd_ray.distill.checkpoint import flaw

        if problem := flaw(folder):
            raise _unwritten(steps, folder.parent, f"{problem}; all nodes must see run_dir on the same storage")
        place = self.directory.commit_checkpoint(folder)
        self.saved = steps
        seconds = self.monotonic() - self.began
        self.took = {"checkpoint/seconds": seconds, "checkpoint/waited_s": self.waited_s}
        said = f"checkpoint {steps} is written, in {seconds:.1f} s, of which the run waited {self.waited_s:.1f} s"
        self.say(said)
        self.directory.event("checkpoint", said=said, step=steps, seconds=seconds, waited_s=self.waited_s)
        c = self.recipe.checkpoint
        self.directory.keep_checkpoints(c.keep_last, c.best, c.best_is)
        self.committed(steps, place)

    def _write_once_there_is_room(self, room: Room, steps: int, version: int, metrics: dict[str, Any]) -> None:
        self.room = None  # whoever waits now hears of a disk that is still full

        def write() -> None:
            try:
                self.begin(steps, version, metrics)
                self._finish(wait=True)
            except UserError as e:
                raise (OSError(str(e)) if is_full(e) else e) from None

        try:
            room.having(f"checkpoint {steps}", write)
        finally:
            self.room = room

    def _remedy(self) -> str:
        kept = (
            f"Checkpoint {self.saved} is kept, and --resume goes on from it" if self.saved else "None was written yet"
        )
        return (
            f"{kept}. If the same steps fail again, look at their rows (rows/) and start a new run with a lower "
            "learner.lr"
        )

    def _ask(self, wait_s: float) -> tuple[bool, str | None]:
        """(whether the writing has ended, what went wrong); a checkpoint that was lost meanwhile has ended."""

        def ask() -> tuple[bool, str | None]:
            if self.writing is None:
                return True, None
            return self.trainer.call("finish_checkpoint", wait_s + ANSWER_S, wait_s=wait_s)

        return self.outlive(ask)


def _unwritten(steps: int, place: Path, problem: str) -> UserError:
    return UserError(
        f"checkpoint {steps} could not be written to {place} ({problem}): fix that, and go on with --resume"
    )


def _not_finite(metrics: dict[str, Any]) -> list[str]:
    names = {"loss": "the loss", "grad_norm": "the gradient's norm"}
    return [text for name, text in names.items() if name in metrics and not math.isfinite(metrics[name])]
