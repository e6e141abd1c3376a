"""What can be seen of a run from outside: whether it lives, what it does, what happened last. Also after a crash.

    run directory (.lock, status.json, events.jsonl, checkpoints/, metrics.jsonl)  ->  look_at()  ->  plain data

Alive or dead is told by the lock, which the kernel drops when the process dies, and by the heartbeat, the time at which
the run last wrote status.json:

    state      lock   heartbeat
    running    held   new
    paused     held   new; the run rests, since somebody asked for that
    silent     held   older than SILENT_S: its driver hangs, or computes something long
    done       free   its last word was that all is done; so also `stopped` and `failed`
    dead       free   it said no last word
    unknown    free   new, from another machine: locks are not shared with that one, so nobody can say

A run that has not written its status.json yet is `running`. One of an earlier version, which wrote none, is that too
or, which says less, `ended`.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trd_ray import alarms
from trd_ray.record.events import last_events
from trd_ray.session.door import STATUS

SILENT_S = 60.0
LAST_EVENTS = 6
# Kinds of events that a person should hear of.
ALARMS = ("alarm", "warning", "engine", "learner", "stream", "silence", "bad_row", "notice", "disk", "mirror")
DEEPEST = 4  # folders below the one in which runs are looked for
LAST_LINE = 100_000  # bytes in which the last line of metrics.jsonl is looked for
LIVE = ("running", "paused", "silent", "unknown")
_STEP = re.compile(r"step-(\d+)")


def look_at(directory: Path, now: float | None = None) -> dict[str, Any]:
    """Everything that a screen shows of a run, as JSON can hold it; `directory` may be that of a comparison, too."""
    now = time.time() if now is None else now
    status = _json(directory / STATUS)
    held = is_held(directory)
    holder = _holder(directory) if held else None
    if holder and not holder.startswith(f"process {status.get('pid')} on "):
        status = {}  # what an earlier start wrote: this one has shown nothing yet
    return {
        "name": directory.name,
        "directory": str(directory),
        "seen": now,
        "state": state_of(status, held, now),
        "holder": holder,
        "status": status,
        "checkpoints": sorted(
            int(found[1]) for place in directory.glob("checkpoints/step-*") if (found := _STEP.fullmatch(place.name))
        ),
        "metrics": _last_metrics(directory),
        "events": last_events(directory, LAST_EVENTS),
        "alarm": next((e for e in reversed(last_events(directory)) if e["kind"] in ALARMS and not e.get("over")), None),
        "alarms": [one for one in alarms.read(directory) if one["until_step"] is None],
    }


def state_of(status: dict[str, Any], held: bool, now: float) -> str:
    written = status.get("written")
    fresh = isinstance(written, int | float) and now - written <= SILENT_S
    if held:
        if not status:
            return "running"
        return ("paused" if status.get("paused") else "running") if fresh else "silent"
    if not status:
        return "ended"
    if ended := status.get("ended"):
        return ended.get("how", "ended")
    return "unknown" if fresh and status.get("host") != socket.gethostname() else "dead"


def is_held(directory: Path) -> bool:
    """Whether a process holds the run's lock. A run that starts in this moment tries again (see record/claim.py)."""
    try:
        lock = os.open(directory / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(lock)
    return False


def runs_below(root: Path) -> Iterator[Path]:
    """The directories of runs and comparisons, the newest last; runs of a comparison follow it."""
    found = []
    for folder, folders, files in os.walk(root):
        place = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "recipe.yaml" in files or "comparison.yaml" in files:
            with contextlib.suppress(OSError):
                found.append((place.stat().st_mtime, place))
        if "recipe.yaml" in files or len(place.relative_to(root).parts) >= DEEPEST:
            folders.clear()
    yield from (place for _, place in sorted(found))


def is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("recipe.yaml", "comparison.yaml"))


def _holder(directory: Path) -> str:
    with contextlib.suppress(OSError):
        return (directory / ".lock").read_text(errors="replace")[:200]
    return ""


def _json(place: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        tree = json.loads(place.read_text())
        return tree if isinstance(tree, dict) else {}
    return {}


def _last_metrics(directory: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError), open(directory / "metrics.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE))
        whole = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        return json.loads(whole[-1]) if whole else {}
    return {}
