"""When a run saves its state, how it learns that a save is complete, and which checkpoints stay.

    begin(steps) -> the learner copies its state and goes on -> files are written -> finish() -> named, old ones deleted

One is written at a time. A run that is killed meanwhile leaves a folder without a name, which `--resume` removes.
"""

import difflib
import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trd_ray.config import Recipe
from trd_ray.distill.trainer import Trainer
from trd_ray.errors import UserError
from trd_ray.run.directory import RunDirectory

POLL_S = 1.0
ANSWER_S = 60  # the ranks are idle when they are asked, unless one of them hangs


class Checkpoints:
    def __init__(self, recipe: Recipe, directory: RunDirectory, trainer: Trainer, saved: int):
        """`saved` steps are in the newest checkpoint; the initial weights need none."""
        self.recipe, self.directory, self.trainer, self.saved = recipe, directory, trainer, saved
        self.timeout_s = recipe.learner.step_timeout_s
        self.writing: tuple[int, Path] | None = None

    @property
    def begun(self) -> int:
        """The steps of the newest one, which may still be being written."""
        return self.writing[0] if self.writing else self.saved

    def due(self, steps: int, total_steps: int) -> bool:
        return steps % self.recipe.checkpoint.every_steps == 0 or steps == total_steps

    def begin(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        """Save the learner's state, which is that after `steps` steps; `metrics` are those of the last of them.

        Returns when it is copied (with checkpoint.asynchronous=false: written). Raises what `finish` raises.
        """
        if steps == self.begun:
            return
        self.finish(wait=True)
        measured = {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        rows = steps * self.recipe.rollouts_per_step
        try:
            folder = self.directory.begin_checkpoint(steps, {"version": version, "rows": rows, "metrics": measured})
        except OSError as e:
            raise _unwritten(steps, self.directory.path / "checkpoints", str(e)) from e
        self.trainer.call("begin_checkpoint", self.timeout_s, folder=str(folder))
        self.writing = (steps, folder)
        if not self.recipe.checkpoint.asynchronous:
            self.finish(wait=True)

    def finish(self, wait: bool) -> None:
        """Let what is being written count if all of it is there, for which `wait` waits; then delete old ones.

        Raises UserError if it could not be written, TimeoutError if it takes too long.
        """
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
        self.directory.commit_checkpoint(folder)
        self.saved, c = steps, self.recipe.checkpoint
        self.directory.keep_checkpoints(c.keep_last, c.best, c.best_is)

    def _ask(self, wait_s: float) -> tuple[bool, str | None]:
        return self.trainer.call("finish_checkpoint", wait_s + ANSWER_S, wait_s=wait_s)


def _unwritten(steps: int, place: Path, problem: str) -> UserError:
    return UserError(
        f"checkpoint {steps} could not be written to {place} ({problem}): mend that, and go on with --resume"
    )


def require_metric(name: str, measured: Collection[str]) -> None:
    """Refuse a `checkpoint.best` that no step measures; raises UserError."""
    if name not in measured:
        close = difflib.get_close_matches(name, measured, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(measured))}"
        raise UserError(f"checkpoint.best={name} names nothing that a step measures ({hint})")
