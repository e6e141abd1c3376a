"""What the watcher says of a run that is recorded: the same as while it went on.

    metrics.jsonl, events.jsonl, recipe  ->  replayed()  ->  a Watcher that has seen all of it

    python -m trd_ray.alarms.replay RUN ...     prints the alarms of each, and changes nothing

Events lie between the steps by their times. Those that an earlier start of the run left after the last step that is
kept belong to steps that were rewound, so the next start forgets them. An evaluation says itself of which step it is.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trd_ray.alarms.around import Around
from trd_ray.alarms.watcher import Watcher
from trd_ray.config import Recipe, stored
from trd_ray.errors import UserError


def replayed(recipe: Recipe, lines: Iterable[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()) -> Watcher:
    """A watcher that was fed these lines of metrics.jsonl."""
    watcher = Watcher(Around.of(recipe), recipe.alarms.silent)
    waiting, recorded = list(events), list(lines)
    for line, after in zip(recorded, [*recorded[1:], {}], strict=False):
        step = int(line["step"])
        taken, waiting = _of_step(waiting, step, line.get("time_s"), after.get("time_s"))
        watcher.step(step, line, taken)
    return watcher


def of_run(directory: Path | str, until: int | None = None, recipe: Recipe | None = None) -> Watcher:
    """The watcher of the run in a directory, by its first `until` steps.

    The recipe is by default that of the directory; raises UserError where there is none.
    """
    place = Path(directory)
    if recipe is None and not (place / "recipe.yaml").is_file():
        raise UserError(f"{place} is no run directory: it has no recipe.yaml")
    lines = [line for line in json_lines(place / "metrics.jsonl") if isinstance(line.get("step"), int)]
    kept = [line for line in lines if until is None or line["step"] <= until]
    return replayed(recipe or stored(place / "recipe.yaml"), kept, json_lines(place / "events.jsonl"))


def json_lines(place: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that are objects of JSON."""
    found = []
    with contextlib.suppress(OSError):
        for line in place.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                one = json.loads(line)
                found += [one] if isinstance(one, dict) else []
    return found


def _of_step(waiting: list[Any], step: int, ended: Any, next_ended: Any) -> tuple[list[Any], list[Any]]:
    """(events of the step, later ones). An evaluation may stand behind what came while it was made."""
    taken: list[Any] = []
    left: list[Any] = []
    for i, event in enumerate(waiting):
        if _is_after(event, next_ended):
            return taken, left + waiting[i:]
        if not _comes_before(event, step, ended):
            left.append(event)
        elif event.get("kind") == "start":  # evaluations that are left are of steps that it does again
            taken, left = _kept(taken, step), []
        else:
            taken.append(event)
    return taken, left


def _is_after(event: Mapping[str, Any], ended: Any) -> bool:
    when = event.get("when")
    return isinstance(when, int | float) and isinstance(ended, int | float) and when > ended


def _comes_before(event: Mapping[str, Any], step: int, ended: Any) -> bool:
    """Whether the event belongs to the step, or to what came before it."""
    if event.get("kind") == "evaluation":
        return int(event.get("step", 0)) <= step
    when = event.get("when")
    return isinstance(when, int | float) and isinstance(ended, int | float) and when <= ended


def _kept(events: list[Mapping[str, Any]], step: int) -> list[Mapping[str, Any]]:
    """Of the events before another start: the evaluations of steps that it did not do again."""
    return [one for one in events if one.get("kind") == "evaluation" and int(one.get("step", 0)) < step]


if __name__ == "__main__":
    for run in sys.argv[1:]:
        watched = of_run(run)
        print(f"{run}: {len(watched.history.lines)} steps, {len(watched.alarms)} alarms")
        for one in watched.alarms:
            print(f"  steps {one.since_step} to {one.until_step or 'the end'}  {one}")
