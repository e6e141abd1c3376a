"""What a run directory holds, read for the page: each part once, and only when a panel asks for it.

    run directory  ->  Recorded  ->  recipe, metrics, evaluations, events, how it ended, when it worked

Nothing here writes, and no rows are read but for `facts`. A run that goes on, crashed or has not begun reads like any
other: what is absent is empty.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trd_ray.config import Recipe, stored
from trd_ray.record.directory import RunDirectory
from trd_ray.record.events import last_events
from trd_ray.record.ledger import facts_of_run
from trd_ray.score.stats import Score

MOST_EVENTS = 100_000_000  # bytes: the first start lies at the beginning of the file, and counts in what a run cost
ENDED = {
    "done": "done",
    "stopped": "stopped before its end",
    "failed": "failed",
    "running": "still going",
    "ending": "ended early",
    "dead": "crashed: its process is gone without a last word",
    "ended": "over",
}


@dataclass
class Recorded:
    directory: RunDirectory
    label: str  # what it is called on the page
    look: Callable[[], object] = lambda: None  # called while rows are read; may raise

    @property
    def path(self) -> Path:
        return self.directory.path

    @cached_property
    def recipe(self) -> Recipe:
        return stored(self.path / "recipe.yaml")

    @cached_property
    def metrics(self) -> list[dict]:
        return self.directory.read_metrics()

    @cached_property
    def evaluations(self) -> list[Score]:
        return self.directory.read_evaluations()

    @cached_property
    def sets(self) -> dict[str, list[Score]]:
        return {name: self.directory.read_evaluations(name) for name in self.directory.evaluated_sets()}

    @cached_property
    def facts(self) -> list[dict]:
        """A few numbers of every row (see record.ledger), which takes the time of reading all rows."""
        return facts_of_run(self.directory.read_rows())

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return last_events(self.path, tail=MOST_EVENTS)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """What environment.json says of each start."""
        found = json_of(self.path / "environment.json")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    @cached_property
    def status(self) -> dict[str, Any]:
        found = json_of(self.path / "status.json")
        return found if isinstance(found, dict) else {}

    @cached_property
    def state(self) -> str:
        """One of ENDED. The run's own process asks at its very end, when it still holds the directory."""
        holder = _holder(self.path)
        if holder is not None and not holder.startswith(f"process {os.getpid()} on "):
            return "running"
        if holder is not None:
            return "done" if self.total_steps == self.steps else "ending"
        if not self.status:
            return "ended"
        ended = self.status.get("ended")
        return str(ended.get("how", "ended")) if isinstance(ended, dict) else "dead"

    @property
    def steps(self) -> int:
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def total_steps(self) -> int | None:
        """How many steps it shall have, where it has said that."""
        shown = (self.status.get("shown") or {}).get("steps")
        return shown[1] if isinstance(shown, list) and len(shown) == 2 else self.recipe.steps

    @property
    def trains(self) -> bool:
        """Whether it has a learner, which a corpus of `trd refine` has not."""
        if program := self.status.get("program"):
            return program == "train"
        return not self.metrics or any("lr" in line for line in self.metrics)

    def series(self, name: str) -> list[float | None]:
        return [line.get(name) for line in self.metrics]

    def total(self, name: str) -> float | None:
        """The sum over all steps, None where no step measured it."""
        found = [value for value in self.series(name) if value is not None]
        return sum(found) if found else None

    @cached_property
    def spans(self) -> list[tuple[float, float]]:
        """When the run's processes were at work, start by start, in Unix seconds."""
        signs = [event["when"] for event in self.events]
        signs += [line["time_s"] for line in self.metrics if line.get("time_s")]
        signs += [one for one in (self.status.get("written"),) if isinstance(one, int | float)]
        starts = [event["when"] for event in self.events if event["kind"] == "start"]
        found = []
        for begin, until in zip(starts, [*starts[1:], float("inf")], strict=False):  # the last of them may be none
            found.append((begin, max(when for when in [*signs, begin] if when < until)))
        return found

    @property
    def seconds(self) -> float:
        """Wall time over all starts; without events that of the steps."""
        return sum(end - begin for begin, end in self.spans) or self.total("seconds/step") or 0.0

    def step_at(self, when: float) -> float | None:
        """The step under way at a moment, as a place on the axis of steps: 3 lies at the end of step 3."""
        times = [(line["time_s"], line["step"]) for line in self.metrics if line.get("time_s")]
        if not times:
            return None
        before = [step for end, step in times if end <= when]
        return float(before[-1]) if before else float(times[0][1] - 1)


def json_of(place: Path) -> Any:
    """What the file holds, None where it is absent or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(place.read_text(errors="replace"))
    return None


def _holder(path: Path) -> str | None:
    """Who holds the run's lock, None for nobody."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.read(lock, 200).decode(errors="replace")
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(lock)
