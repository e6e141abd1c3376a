"""A run of which nothing is heard: since when, whether it is stopped or hangs, and where.

    time of the last beat, monotonic clock, what the run has said  ->  Silence.look()  ->  a sentence once per silence

It belongs to the process above a run, which imports nothing of Ray.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trd_ray.record.events import append_event
from trd_ray.session.last_words import SAY_STACKS

STOPPED_S = 5.0  # between two looks, of which one is made every second
STACKS_S = 2.0  # for the run to write what it is doing
_LOOK_S = 0.1
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (\S+)', re.MULTILINE)


def said(directory: str | None, text: str) -> None:
    """On screen, and in the run's events."""
    with contextlib.suppress(OSError):
        print(f"trd: {text}", file=sys.stderr, flush=True)
    if directory and Path(directory).is_dir():
        append_event(Path(directory), "silence", said=text)


class Silence:
    def __init__(self, pid: int, tell: Callable[[str | None, str], object] = said):
        self.pid = pid
        self.tell = tell
        self.beat: float | None = None  # the last one, by whatever clock it has
        self.heard_s = 0.0  # when it was noticed
        self.looked_s = 0.0
        self.told = False

    def look(self, beat: float, now: float, words: dict[str, Any]) -> None:
        """`words` hold heartbeat_s once the run is to be watched, and None when it no longer is."""
        heartbeat_s = words.get("heartbeat_s")
        directory = words.get("directory")
        gap, self.looked_s = now - self.looked_s, now
        if heartbeat_s and gap > max(heartbeat_s / 2, STOPPED_S):  # who looks was stopped, as by Ctrl-Z in a terminal
            self.heard_s += gap
        if beat != self.beat or not heartbeat_s:
            if self.told and heartbeat_s:
                self.tell(directory, f"the run goes on, {now - self.heard_s:.0f} s after it was last heard of")
            self.beat, self.heard_s, self.told = beat, now, False
        elif now - self.heard_s > heartbeat_s and not self.told:
            self.told = True
            since = f"the process that leads the run has not been heard of for {heartbeat_s:g} s (heartbeat_s)"
            self.tell(directory, f"{since}: {_why(self.pid, words.get('stacks'))}")


def _why(pid: int, stacks: str | None) -> str:
    if _state(pid) in "Tt":
        return f"it is stopped, and `kill -CONT {pid}` lets it go on"
    where = _where(pid, stacks) if stacks else ""
    return f"it hangs or computes{where}; `trd stop`, a signal or kill {pid} ends it if it does not come back"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def _where(pid: int, stacks: str) -> str:
    """Where its main thread is, from the stacks that it writes on a signal, also from within a call that hangs."""
    place = Path(stacks)
    try:
        before = place.stat().st_size
        os.kill(pid, SAY_STACKS)
        deadline = time.monotonic() + STACKS_S
        text = ""
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            written = place.read_bytes()[before:].decode(errors="replace")
            if written and written == text:
                break
            text = written
    except OSError:
        return ""
    # The signal goes to the main thread, which Python then calls the current one.
    current = text.partition("Current thread")[2].partition("\n\n")[0]
    frames = _FRAME.findall(current)
    if not frames:
        return ""
    ours = next((frame for frame in frames if "/trd_ray/" in frame[0]), frames[-1])
    named = [f"{name} ({Path(file).name}, line {line})" for file, line, name in dict.fromkeys([frames[0], ours])]
    return f" in {', called by '.join(named)}; all its stacks are in {place}"
