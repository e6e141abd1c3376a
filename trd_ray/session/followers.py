"""Who follows a run from outside: its trackers (W&B, MLflow) and Ray's own metrics. The session tells them.

    recorded(step, metrics, table)  ->  trackers, each in a process of its own; Ray's metrics
    pools(figures)                  ->  Ray's metrics, about once a second
    look()                          <-  what trackers had to say, for the screen

Nothing here waits, but for the end of `during`: trackers have tracking.deadline_s there, and no time after a second
Ctrl-C. Nothing that fails here ends the run.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.record.directory import RunDirectory
from trd_ray.record.summary import first_and_last
from trd_ray.session.stop import Stopped, StopSignals
from trd_ray.trackers.following import Ending, Following, facts_of
from trd_ray.trackers.ray_series import RunSeries

SENT = ("report.html", "summary.md", "recipe.yaml")  # of the run directory, to trackers, at the end


class Followers:
    def __init__(
        self, recipe: Recipe, directory: RunDirectory, stop: StopSignals,
        say: Callable[[str], object], warn: Callable[[dict[str, str]], object],
    ):  # fmt: skip
        """`say` shows a sentence, `warn` one that is a warning."""
        self.recipe = recipe
        self.directory = directory
        self.stop = stop
        self.say = say
        self.warn = warn
        self.following = Following.of(recipe)
        self.series = RunSeries(recipe.name)

    @contextlib.contextmanager
    def during(self, program: str, done: int, look: Callable[[], object]) -> Iterator[None]:
        """The run is in the block, with `done` steps before it. `look` is called while trackers are waited for."""
        place = self.directory.path
        facts = facts_of(self.recipe, program, done, _versions(place))
        try:
            with self.following.during(place, facts, self._ending, lambda: self._wait(look), self._is_hurried):
                yield
        finally:
            with contextlib.suppress(OSError):
                self.look()

    def recorded(self, step: int, metrics: Mapping[str, Any], table: pa.Table) -> None:
        """A step is recorded; steps count from 1."""
        self.series.step(step, metrics)
        self.following.step(step, metrics, table)

    def pools(self, figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The figures, unchanged."""
        self.series.pools(figures)
        return figures

    def look(self) -> None:
        """Show what trackers have said since the last call."""
        for warns, said in self.following.news():
            if warns:
                self.warn({said: said})
            else:
                self.say(said)

    def _wait(self, look: Callable[[], object]) -> None:
        look()
        self.look()

    def _is_hurried(self) -> bool:
        return self.stop.hurried

    def _ending(self, raised: BaseException | None) -> Ending:
        stopped = isinstance(raised, Stopped | KeyboardInterrupt)
        text = self.directory.path / "summary.md"
        return Ending(
            "done" if raised is None else "stopped" if stopped else "failed",
            " ".join(str(raised or "").split()),
            final_scores(self.directory),
            text.read_text() if text.is_file() else "",
            [self.directory.path / name for name in SENT],
        )


def final_scores(directory: RunDirectory) -> dict[str, float]:
    """The first and the last score of each set, and how far the last one is from what it is compared with.

    final/base/avg@4, final/trained/avg@4, and final/trained/avg@4_gain with the ends of its interval (_gain_low and
    _gain_high); final/SET/... for a set of evaluation.sets.
    """
    found: dict[str, float | None] = {}
    for of in ("", *directory.evaluated_sets()):
        for score in first_and_last(directory.read_evaluations(of)):
            name = "/".join(filter(None, ["final", of, score.name]))
            found |= {f"{name}/{measure}": estimate.value for measure, estimate in score.scores.items()}
            for measure, gain in (score.paired_with.differences if score.paired_with else {}).items():
                ends = {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                found |= {f"{name}/{measure}_{end}": value for end, value in ends.items()}
    return {name: value for name, value in found.items() if value is not None}


def _versions(directory: Path) -> dict[str, str]:
    """The command and the versions of this start of the run."""
    try:
        start = json.loads((directory / "environment.json").read_text())[-1]
        packages = {name: str(version) for name, version in start["packages"].items()}
        return {"command": str(start["command"]), "commit": str(start["commit"])} | packages
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
