"""When a run saves its state, how it learns that a save is complete, and which checkpoints stay.

    begin(steps) -> the learner copies its state and goes on -> files are written and read back
                 -> finish() -> named, old ones deleted

The rules:

- A state that may be unsound never replaces one that is sound. If a weight is not finite, the run ends. If a step could
  make no update, its checkpoint is put off until a step makes one.
- One checkpoint is written at a time.
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
from trd_ray.record.directory import RunDirectory

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
    ):
        """The newest checkpoint holds `saved` steps, 0 for the initial weights. `show` is told what is being done."""
        self.show = show
        self.recipe = recipe
        self.directory = directory
        self.trainer = trainer
        self.saved = saved
        self.timeout_s = recipe.learner.step_timeout_s
        self.writing: tuple[int, Path] | None = None
        self.put_off: str | None = None  # why the last checkpoint that was due is not begun yet
        self.lost = 0  # how many steps in a row, up to now, made no update

    @property
    def begun(self) -> int:
        """The steps in the newest checkpoint, which may not be written yet."""
        return self.writing[0] if self.writing else self.saved

    def due(self, steps: int, total_steps: int) -> bool:
        return bool(self.put_off) or steps % self.recipe.checkpoint.every_steps == 0 or steps == total_steps

    def if_due(self, steps: int, total_steps: int, version: int, metrics: dict[str, Any]) -> None:
        """Called after every step: ends a run that cannot be updated, names what is complete, begins the next if due.

        Raises what `require_updates`, `begin` and `finish` raise.
        """
        self.require_updates(steps, metrics)
        self.finish(wait=False)
        if self.due(steps, total_steps):
            self.save(steps, version, metrics)

    def save(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        """`begin`, unless a checkpoint holds the state after `steps` steps already."""
        if steps != self.begun:
            self.show(f"writing checkpoint {steps}")
            self.begin(steps, version, metrics)
            self.show("training")

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
        self._finish(wait=True)
        odd = _not_finite(metrics)
        if odd and not metrics.get("updates"):
            self.put_off = f"checkpoint {steps} is not written: not finite in that step are {' and '.join(odd)}"
            return
        measured = {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        rows = steps * self.recipe.rollouts_per_step
        try:
            folder = self.directory.begin_checkpoint(steps, {"version": version, "rows": rows, "metrics": measured})
        except OSError as e:
            raise _unwritten(steps, self.directory.path / "checkpoints", str(e)) from e
        broken = self.trainer.call("begin_checkpoint", self.timeout_s, folder=str(folder))
        if broken:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunFailed(f"checkpoint {steps} is not written: {broken}. {self._remedy()}")
        self.writing = (steps, folder)
        self.put_off = None
        if not self.recipe.checkpoint.asynchronous:
            self._finish(wait=True)

    def finish(self, wait: bool) -> None:
        """Name the checkpoint under way if all of it is written, then delete old ones; `wait` waits for that.

        Raises UserError if it could not be written, and TimeoutError if that takes too long. With `wait`, at the end of
        the run, raises RunFailed if the last checkpoint was put off.
        """
        self._finish(wait)
        if wait and self.put_off:
            raise RunFailed(f"{self.put_off}. {self._remedy()}")

    def _finish(self, wait: bool) -> None:
        if self.writing is None:
            return
        steps, folder = self.writing
        deadline = time.monotonic() + self.timeout_s
        done, problem = self._ask(POLL_S if wait else 0)
        while wait and not done:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.timeout_s:.0f} s (learner.step_timeout_s) for checkpoint {steps} to be written to "
                    f"{folder.parent}"
                )
            done, problem = self._ask(POLL_S)
        if not done:
            return
        self.writing = None
        if problem:
            raise _unwritten(steps, folder.parent, problem)
        # Imported here since it imports all of torch.
        from trd_ray.distill.checkpoint import flaw

        if problem := flaw(folder):
            raise _unwritten(steps, folder.parent, f"{problem}; all nodes must see run_dir on the same storage")
        self.directory.commit_checkpoint(folder)
        self.saved = steps
        c = self.recipe.checkpoint
        self.directory.keep_checkpoints(c.keep_last, c.best, c.best_is)

    def _remedy(self) -> str:
        kept = (
            f"Checkpoint {self.saved} is kept, and --resume goes on from it" if self.saved else "None was written yet"
        )
        return (
            f"{kept}. If the same steps fail again, look at their rows (rows/) and start a new run with a lower "
            "learner.lr"
        )

    def _ask(self, wait_s: float) -> tuple[bool, str | None]:
        return self.trainer.call("finish_checkpoint", wait_s + ANSWER_S, wait_s=wait_s)


def _unwritten(steps: int, place: Path, problem: str) -> UserError:
    return UserError(
        f"checkpoint {steps} could not be written to {place} ({problem}): fix that, and go on with --resume"
    )


def _not_finite(metrics: dict[str, Any]) -> list[str]:
    names = {"loss": "the loss", "grad_norm": "the gradient's norm"}
    return [text for name, text in names.items() if name in metrics and not math.isfinite(metrics[name])]
