"""Whether a run is under way, told by its mirror: file locks end at the machine, and a second start may be on another.

    Beacon(place).light()  ->  alive.json in the mirror, written again every BEAT_S  ->  put_out() deletes it
    require_dark(place)    ->  UserError if another start of the run writes there; it looks for PATIENCE_S, no longer

No clock is compared with another machine's: who looks sees whether the file changes. A run that is cut off from its
mirror for longer than PATIENCE_S may be taken for dead. When it reaches the mirror again, it finds there who has taken
over, and ends (`taken_by`).
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trd_ray.errors import UserError
from trd_ray.record.elsewhere import Elsewhere

FILE = "alive.json"
BEAT_S = 10.0
PATIENCE_S = 45.0  # without a change, the one who wrote last is dead
LOOK_S = 1.0


class Beacon:
    """Of one start of a run."""

    def __init__(self, place: Elsewhere, directory: Path, beat_s: float = BEAT_S):
        self.place = place
        self.beat_s = beat_s
        self.taken_by: str | None = None  # another start that has written there since
        self._start = secrets.token_hex(8)
        self._says = {
            "start": self._start,
            "by": f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}",
        } | _here(directory)
        self._beats = 0
        self._out = threading.Event()
        self._thread = threading.Thread(target=self._work, name="beacon", daemon=True)

    def light(self) -> None:
        """Write it for the first time; raises UserError if the mirror takes no files."""
        try:
            self._beat()
        except OSError as e:
            raise UserError(
                f"the mirror {self.place.url} takes no files ({e}): give this machine the right to write there, or set "
                "checkpoint.mirror to another place"
            ) from e
        self._thread.start()

    def put_out(self) -> None:
        """The run is no longer under way."""
        self._out.set()
        self._thread.join(self.beat_s)
        with contextlib.suppress(OSError):
            if _read(self.place).get("start") == self._start:
                self.place.delete(FILE)

    def _work(self) -> None:
        while not self._out.wait(self.beat_s):
            with contextlib.suppress(OSError):  # the mirror itself says that it cannot be reached
                found = _read(self.place)
                if found and found.get("start") != self._start:
                    self.taken_by = str(found.get("by"))
                    return
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self.place.replace(FILE, json.dumps(self._says | {"beat": self._beats}).encode())


def require_dark(
    place: Elsewhere,
    directory: Path,
    say: Callable[[str], object],
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Raise UserError if another start of the run is under way.

    One that ran here in the same directory is not looked for: it holds, or has held, the lock there.
    """
    seen = _read(place)
    if not seen or _here(directory).items() <= seen.items():
        return
    by = str(seen.get("by"))
    say(f"mirror: {by} has not put out its light in {place.url}: looking for {patience_s:.0f} s whether it lives")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        sleep(LOOK_S)
        now = _read(place)
        if not now:
            return
        if now != seen:
            raise UserError(
                f"the run whose mirror is {place.url} is under way, and {now.get('by')} has it: wait for it, stop it, "
                "or set run_dir or checkpoint.mirror to another place"
            )


def _here(directory: Path) -> dict[str, str]:
    return {"host": socket.gethostname(), "directory": str(directory)}


def _read(place: Elsewhere) -> dict[str, Any]:
    """What is said there, nothing where nothing is said."""
    try:
        found = json.loads(place.read(FILE) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
