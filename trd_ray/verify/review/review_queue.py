"""The responses that wait for a person: RUN/review/queue.jsonl, a JSON line each, and what is where beside it.

    Queued  ->  write_queue(), append_queue()  ->  queue.jsonl  ->  read_queue()  ->  {key: Queued}
    Queued, what is known to have passed       ->  still_wanted()  ->  whether anybody still has to judge it

All that a model or the data wrote is JSON text in ASCII: a line is one line, and no character of it moves a terminal.
The queue can be made again from the rows of the run. The verdicts cannot, and stand in a file of their own.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trd_ray.files import write_atomically

FOLDER = "review"


@dataclass(frozen=True)
class Asker:
    """A row that needs the verdict."""

    row: int
    trajectory: str  # y_o or y_r
    candidate: int | None = None  # of the refinements, from 1
    candidates: int | None = None  # how many there are
    unless_passed: tuple[str, ...] = ()  # keys of responses: once one of them has passed, the row needs no verdict here


@dataclass(frozen=True)
class Queued:
    """A response, once for all rows that have it."""

    key: str
    problem_id: str
    problem: str
    turns: list[dict[str, str]]  # what was said before the problem, each with its role and content
    reference: str
    answer: str
    response: str
    pass_at: float  # with a score alone it passes from here on
    asked_by: list[Asker] = field(default_factory=list)


def queue_place(run: Path) -> Path:
    return run / FOLDER / "queue.jsonl"


def given_place(run: Path) -> Path:
    return run / FOLDER / "verdicts.jsonl"


def write_queue(run: Path, waiting: Iterable[Queued]) -> None:
    """Replace the whole queue. Raises OSError."""
    queue_place(run).parent.mkdir(exist_ok=True)
    write_atomically(queue_place(run), "".join(map(_line, waiting)))


def append_queue(run: Path, waiting: Iterable[Queued]) -> None:
    """Add to the queue. Raises OSError."""
    queue_place(run).parent.mkdir(exist_ok=True)
    with open(queue_place(run), "a") as file:
        file.write("".join(map(_line, waiting)))
        file.flush()
        os.fsync(file.fileno())


def read_queue(run: Path) -> dict[str, Queued]:
    """What waits, by key and in order; a line that is cut short is left out. Raises OSError where there is no queue."""
    found: dict[str, Queued] = {}
    for line in queue_place(run).read_text().splitlines():
        try:
            tree = json.loads(line)
            one = Queued(**tree | {"asked_by": [_asker(asker) for asker in tree["asked_by"]]})
        except (ValueError, TypeError, KeyError):
            continue
        found.setdefault(one.key, one)
        if found[one.key] is not one:
            found[one.key].asked_by.extend(one.asked_by)
    return found


def still_wanted(one: Queued, passed: Callable[[str], bool]) -> bool:
    """`passed` tells of a key whether that response is known to have passed."""
    return any(not any(map(passed, asker.unless_passed)) for asker in one.asked_by)


def _line(one: Queued) -> str:
    return json.dumps(asdict(one)) + "\n"


def _asker(tree: dict[str, Any]) -> Asker:
    fields: dict[str, Any] = {**tree, "unless_passed": tuple(tree["unless_passed"])}
    return Asker(**fields)
