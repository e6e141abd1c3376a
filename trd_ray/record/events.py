"""What happened in a run, one line of JSON each, in the order in which it happened: events.jsonl.

    directory.event("scale", said="refiner has 3 engines now", pool="refiner")
        ->  {"when": 1795812900.2, "kind": "scale", "said": "refiner has 3 engines now", "pool": "refiner"}

Every event has `when` (Unix seconds), `kind` (one word) and, where a person should read it, `said` (a sentence). What
else it holds depends on its kind. A line is written at once, so a crash leaves all of them but half of the last. What
cannot be written, since the disk is full, is left out: an event never ends a run.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "events.jsonl"
LONGEST_TAIL = 1_000_000  # bytes that are read for the last events


def append_event(directory: Path, kind: str, **facts: Any) -> None:
    """Write an event with a single write, so that two processes that write at once do not mix their lines."""
    line = json.dumps({"when": time.time(), "kind": kind} | facts, default=str).encode() + b"\n"
    with contextlib.suppress(OSError):
        file = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            cut = size and os.pread(file, 1, size - 1) != b"\n"  # of the line before, as where the disk was full
            os.write(file, b"\n" * bool(cut) + line)
        finally:
            os.close(file)


def last_events(directory: Path, count: int | None = None, tail: int = LONGEST_TAIL) -> list[dict[str, Any]]:
    """The newest events, oldest first, of so many bytes at the end of the file; damaged lines are left out."""
    try:
        with open(directory / FILE, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - tail)
            file.seek(start)
            lines = file.read().splitlines()[1 if start else 0 :]
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("when"), int | float) and "kind" in event:
                found.append(event)
    return found if count is None else found[-count:]
