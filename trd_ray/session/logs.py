"""The logs of a run, by short names: `sampler-0`, `ray`, `train`, `failure` (the newest trace).

names(RUN) -> {"ray": RUN/logs/ray.log, ...};  tail(file, lines) -> (text, where it ends);  more(file, from there on)
"""

import os
from pathlib import Path

from trd_ray.errors import UserError

LONGEST_TAIL = 1_000_000  # bytes


def logs_of(directory: Path) -> dict[str, Path]:
    """Those that a run has, the run's own first."""
    found = {"train": directory / "train.log"} if (directory / "train.log").is_file() else {}
    found |= {file.stem: file for file in sorted((directory / "logs").glob("*.log"))}
    if failures := sorted((directory / "logs").glob("failure-*.txt")):
        found["failure"] = failures[-1]
    return found


def log_named(directory: Path, name: str) -> Path:
    """Raises UserError with the names that there are."""
    from trd_ray.config import did_you_mean

    found = logs_of(directory)
    if name not in found:
        raise UserError(f"the run in {directory} has no log {name!r}{did_you_mean(name, list(found)) if found else ''}")
    return found[name]


def tail(file: Path, lines: int) -> tuple[str, int]:
    """The last lines, and the byte at which they end."""
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        start = max(0, size - LONGEST_TAIL)
        opened.seek(start)
        text = opened.read(size - start).decode(errors="replace")
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else "", size


def more(file: Path, start: int) -> tuple[str, int]:
    """What was written from the byte `start` on. A file that is shorter by now began anew."""
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(start if start <= size else 0)
        text = opened.read(LONGEST_TAIL)
        return text.decode(errors="replace"), opened.tell()
