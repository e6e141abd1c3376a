"""The processes of a run, by what they do: read from /proc, since a run's processes are not all its descendants.

    roots (a run, a cluster's nodes) -> /proc -> below() -> those of a role

A local Ray is below its driver. The workers of a cluster are below its raylets, whichever run they work for.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# role -> what its command line begins with, or holds. Ray names a worker after its actor and the method that it is at.
ROLES = {
    "engine": r"^ray::Engine\b",
    "engine core": r"EngineCore",
    "pool": r"^ray::Pool\b",
    "keeper": r"^ray::EngineKeeper\b",
    "stage": r"^ray::(MapWorker|MapBatches)\b.*Flow",
    "verifier": r"^ray::verdicts\b",
    "shelf": r"^ray::Shelf\b",
    "learner": r"^ray::RayTrainWorker\b",
    "mailbox": r"^ray::Mailbox\b",
    "controller": r"^ray::TrainController\b",
    "porter": r"^ray::Porter\b",
    "raylet": r"/raylet/raylet ",
    "gcs": r"/gcs_server",
}
_PATTERNS = {role: re.compile(pattern) for role, pattern in ROLES.items()}
# What is a run's own on a cluster that outlives it. Ray keeps idle workers, agents and a few actors of its own.
OF_A_RUN = tuple(role for role in ROLES if role not in ("raylet", "gcs"))
SHARED_MEMORY = "/dev/shm/"


@dataclass(frozen=True)
class Seen:
    """A process, told from a later one of the same number by when it was born."""

    pid: int
    born: int  # in ticks after the machine's start
    parent: int = field(compare=False)
    state: str = field(compare=False)
    title: str = field(compare=False)

    @property
    def role(self) -> str | None:
        return next((role for role, pattern in _PATTERNS.items() if pattern.search(self.title)), None)

    @property
    def is_head(self) -> bool:
        """Whether this raylet is that of a head."""
        return " --head" in self.title

    def lives(self) -> bool:
        now = look(self.pid)
        return now is not None and now.born == self.born and now.state not in "ZX"


def look(pid: int) -> Seen | None:
    """The process of this number, None where there is none."""
    place = Path("/proc", str(pid))
    try:
        stat = (place / "stat").read_text(errors="replace")
        title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    state, parent, *rest = stat.rpartition(")")[2].split()
    return Seen(pid, int(rest[17]), int(parent), state, title)


def below(roots: Iterable[int]) -> list[Seen]:
    """The processes at and below these that have not ended."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, Seen] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found and (seen := look(pid)) and seen.state not in "ZX":
            found[pid] = seen
            waiting += children.get(pid, [])
    return sorted(found.values(), key=lambda seen: seen.pid)


def of_role(role: str, seen: Iterable[Seen]) -> list[Seen]:
    """Those of a role. A `node` is the raylet that is no head's and has most of a run's processes below it."""
    seen = list(seen)
    if role != "node":
        return [one for one in seen if one.role == role]
    busy = {one.pid: sum(other.parent == one.pid and other.role in OF_A_RUN for other in seen) for one in seen}
    nodes = [one for one in of_role("raylet", seen) if not one.is_head and busy[one.pid]]
    return [max(nodes, key=lambda one: busy[one.pid])] if nodes else []


def shared_memory(pid: int) -> set[str]:
    """The files of shared memory that a process has mapped, and whose names are still there to be left behind."""
    with contextlib.suppress(OSError):
        lines = Path("/proc", str(pid), "maps").read_text(errors="replace").splitlines()
        return {line[at:] for line in lines if (at := line.find(SHARED_MEMORY)) >= 0 and not line.endswith("(deleted)")}
    return set()
