"""TensorBoard's files, which the driver writes itself: a step costs a millisecond, and nothing is waited for.

    Board(folder, done).draw(step, metrics)  ->  events.out.tfevents.*

What an earlier start of the run drew after `done` steps is hidden: the resumed run does those steps again. What a full
disk takes from the files stays away: nothing is read from them.
"""

from pathlib import Path
from typing import Any

from trd_ray.files import is_full
from trd_ray.trackers.measured import numbers


class Board:
    def __init__(self, folder: Path, done: int = 0):
        self._folder = folder
        self._writer: Any = self._new(purge_step=done + 1)

    def _new(self, **options: Any) -> Any:
        # Imported here since it imports all of torch, which a use of the module's neighbours should not cost.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), **options)

    def draw(self, step: int, metrics: dict[str, Any]) -> None:
        """Add a step, which is counted from 1. A full disk is no error; any other OSError is raised."""
        self._writer = self._writer or self._new()
        try:
            for name, value in numbers(metrics).items():
                self._writer.add_scalar(name, value, step)
        except OSError as e:
            if not is_full(e):
                raise
            self._writer = None  # its thread has ended with the error

    def close(self) -> None:
        if self._writer:
            self._writer.close()
