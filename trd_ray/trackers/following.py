"""The trackers of one run that have processes of their own, as the driver sees them.

    with Following.of(recipe, "train").during(facts, ending, look, hurried) as following:
        following.step(step, metrics, table)        returns at once
        following.news()                            what trackers had to say, for the screen
    the end of the block: the summary and the files go out, and the trackers have tracking.deadline_s for all of it

The end of the block also comes when the run is stopped or fails. A second Ctrl-C gives the trackers no time.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray.config import Recipe, TrackingConfig
from trd_ray.trackers.kept_apart import KeptApart
from trd_ray.trackers.measured import numbers
from trd_ray.trackers.shown_rows import COLUMNS, few

CLASSES = {
    "wandb": "trd_ray.trackers.to_wandb:WandbRun",
    "mlflow": "trd_ray.trackers.to_mlflow:MlflowRun",
}
LONGEST = 2000  # characters of a key of the recipe


@dataclass
class Ending:
    """What is known of a run at its end."""

    how: str = "done"  # "done", "stopped" or "failed"
    said: str = ""
    summary: Mapping[str, float] = field(default_factory=dict)
    text: str = ""  # summary.md
    files: list[Path] = field(default_factory=list)


class Following:
    """Without trackers, every method returns at once."""

    def __init__(self, tracking: TrackingConfig, classes: Mapping[str, str]):
        """`classes` maps the name of each tracker to its class, as module:Class."""
        self.tracking = tracking
        self.classes = classes
        self.trackers: list[KeptApart] = []
        self._first = True  # step of this start

    @classmethod
    def of(cls, recipe: Recipe) -> "Following":
        return cls(recipe.tracking, {name: CLASSES[name] for name in recipe.trackers if name in CLASSES})

    @contextlib.contextmanager
    def during(
        self,
        directory: Path,
        facts: Mapping[str, Any],
        ending: Callable[[BaseException | None], Ending],
        look: Callable[[], object] = lambda: None,
        hurried: Callable[[], bool] = lambda: False,
    ) -> Iterator["Following"]:
        """The run is in the block. `facts` are what trackers are told at the start (see `facts_of`).

        `ending` is called at its end with what was raised. `look` is called while trackers are waited for, and
        `hurried` says whether nothing is to be waited for.
        """
        self.trackers = [KeptApart(name, where, _log(directory, name)) for name, where in self.classes.items()]
        for tracker in self.trackers:
            tracker.start()
            tracker.put({"do": "begin", "facts": {**facts, "directory": str(directory)}})
        raised: BaseException | None = None
        try:
            yield self
        except BaseException as e:
            raised = e
            raise
        finally:
            if self.trackers:
                self._end(ending, raised, look, hurried)

    def step(self, step: int, metrics: Mapping[str, Any], table: pa.Table | None = None) -> None:
        """A step is recorded; steps count from 1."""
        if not self.trackers:
            return
        self._put({"do": "step", "step": step, "metrics": numbers(metrics)})
        due = self._first or (step - 1) % self.tracking.sample_every_steps == 0
        self._first = False
        if table is not None and due and self.tracking.sample_rows and table.num_rows:
            with contextlib.suppress(Exception):  # a table is no reason to end a run
                rows = few(table, step, self.tracking.sample_rows)
                self._put({"do": "rows", "step": step, "columns": COLUMNS, "rows": rows})

    def news(self) -> list[tuple[bool, str]]:
        """What trackers have said since the last call: (whether it is a warning, the sentence)."""
        return [one for tracker in self.trackers for one in tracker.news()]

    def _put(self, message: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.put(message)

    def _end(
        self, ending: Callable[[BaseException | None], Ending], raised: BaseException | None,
        look: Callable[[], object], hurried: Callable[[], bool],
    ) -> None:  # fmt: skip
        until = time.monotonic() + (0 if hurried() else self.tracking.deadline_s)
        try:
            end = ending(raised)
        except Exception as e:
            end = Ending("failed" if raised else "done", f"its summary could not be read ({type(e).__name__})")
        message = {
            "do": "end", "how": end.how, "said": end.said[:1000], "summary": numbers(end.summary), "text": end.text,
            "files": [str(file) for file in end.files],
        }  # fmt: skip
        for tracker in self.trackers:
            tracker.end(message)

        def looks() -> None:
            nonlocal until
            look()
            if hurried():
                until = 0.0

        try:
            for tracker in self.trackers:
                tracker.wait(lambda: until, looks)
        except BaseException:  # a second Ctrl-C: no tracker is left behind
            for tracker in self.trackers:
                tracker.wait(lambda: 0.0, lambda: None)
            raise


def _log(directory: Path, name: str) -> Path:
    place = directory / "logs" / f"tracker-{name}.txt"
    place.parent.mkdir(exist_ok=True)
    return place


def facts_of(recipe: Recipe, program: str, done: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """What trackers are told of a run at its start. `versions` is what else describes it, as plain texts."""
    return {
        "name": recipe.name, "program": program, "done": done, "versions": dict(versions),
        "tracking": recipe.tracking.model_dump(mode="json"), "recipe": _short(recipe.model_dump(mode="json")),
    }  # fmt: skip


def _short(value: Any) -> Any:
    """A recipe without what only a file should hold, such as the source of a function of one's own."""
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}... ({len(value)} characters, all of them in recipe.yaml)"
    return value
