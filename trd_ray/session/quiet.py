"""Ray's messages are kept out of the live panel, and those that mean nothing to a run are hidden.

    standard error of this process, C++ too  ->  logs/ray.log  ->  lines worth reading  ->  above the live panel
    log records of Ray                       ->  filters       ->  the same             ->  or standard error
    raylet.out of this node                  ->  one sentence when Ray ends processes since memory ran out

Only messages that are known to mean nothing are hidden. Those of standard error are still in logs/ray.log, which also
outlives a crash. Standard error goes to a file, not a pipe: Ray's threads and processes write to it at any time, and
must neither wait for a reader nor fail without one. When the block is left, standard error is as it was before, and
what came last is shown.
"""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import auto_init_hook
from ray._private import worker as ray_worker

from trd_ray.record.display import Display

POLL_S = 0.25
# Ray Data gives its pool of actors their functions through the object store and restarts it: the warning says nothing.
HARMLESS = re.compile(r"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store")
RAYLET = "(raylet) "
# Logger -> the pattern of the records to drop. Nobody misses Ray Data's statistics, which feed a dashboard. The last
# record comes when a run leaves Ray while it starts.
DROPPED = {
    "ray._private.worker": re.compile(r"^Unhandled error .*(ray::_StatsActor\.|class_name: _StatsActor)", re.DOTALL),
    # Such an exception ends the run, which says so, or it comes of the end: requests of a pool that was shut down.
    "ray.data._internal.execution.streaming_executor_state": re.compile(r"^An exception was raised from a task"),
    "ray.data.exceptions": re.compile(r"^(Exception occurred in|Full stack trace)"),
    "ray.data._internal.stats": re.compile(r"_StatsActor"),
    "ray._private.services": re.compile(r"^'NoneType' object has no attribute 'internal_kv_get'$"),
}
KILL = re.compile(
    r"(?:(\d+) worker\(s\) were killed due to the node running low on memory\."
    r"|Killing (\d+) worker\(s\), kill details:)"
    r"\s+Memory on the node \(IP: ([^,\s]+), ID: \w+\) was ([\d.]+)GB used / ([\d.]+)GB limit"
)
KILLED = re.compile(r"^Selected to kill: .*?task name=([^,]+),", re.MULTILINE)
MAX_KILL_LINES = 1000
END_OF_KILL = "Total non-selected idle workers:"


def memory_kill(text: str) -> str | None:
    """What Ray's memory monitor did, in one sentence; None if the text (an error or raylet.out) says nothing of it."""
    found = KILL.search(text)
    if found is None:
        return None
    died, killing, node, used, limit = found.groups()
    count = int(died or killing)
    names = ", ".join(dict.fromkeys(KILLED.findall(text)))
    return (
        f"Ray ended {count} process{'es' * (count > 1)}{f' ({names})' if names else ''} because node {node} ran out of "
        f"memory: {used} of {limit} GiB were in use"
    )


@contextmanager
def ray_apart(log: Path) -> Iterator[None]:
    """Send standard error to `log` in the block, and its lines worth reading to where they would have been read."""
    filters = {name: _Without(pattern) for name, pattern in DROPPED.items()}
    for name, kept in filters.items():
        logging.getLogger(name).addFilter(kept)
    # Without this, a thread that asks Ray for something after the end of the run would start a new Ray.
    auto_init_hook.enable_auto_connect = False
    printed = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = _to_standard_error
    try:
        with _Apart(log) if _is_open(2) else contextlib.nullcontext():
            yield
    finally:
        ray_worker.print_to_stdstream = printed
        for name, kept in filters.items():
            logging.getLogger(name).removeFilter(kept)


def _to_standard_error(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """Replaces Ray's own, which prints what raylets report to standard output; from here it gets to the display."""
    text = "".join(f"{RAYLET}{line}\n" for report in data["lines"] for line in str(report).splitlines())
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))


class _Without(logging.Filter):
    def __init__(self, pattern: re.Pattern[str]):
        super().__init__()
        self._pattern = pattern

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._pattern.search(record.getMessage())


class _Apart:
    def __init__(self, log: Path):
        self._path = log
        self._kills = 0  # so far
        self._kill: list[str] = []  # lines of the kill that raylet.out is reporting
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        self._stderr = os.dup(2)
        log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 2)
        os.close(log)
        self._log = _Tail(self._path)
        self._raylet = None
        self._thread = threading.Thread(target=self._follow, name="stderr", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        _flush()
        os.dup2(self._stderr, 2)
        self._done.set()
        self._thread.join()
        self._look(last=True)
        if self._kills > 1:
            self._say(f"warning: Ray ended processes for want of memory {self._kills} times")
        os.close(self._stderr)

    def _follow(self) -> None:
        while not self._done.wait(POLL_S):
            self._look()

    def _look(self, last: bool = False) -> None:
        for line in self._log.lines(last):
            # The run itself says what a death means.
            if not HARMLESS.search(line) and not line.startswith(RAYLET):
                self._say(line)
        self._raylet = self._raylet or _raylet_out()
        for line in self._raylet.lines(last) if self._raylet else ():
            if KILL.search(line):
                self._kill = []
            self._kill.append(line)
            if line.startswith(END_OF_KILL):
                self._tell_of_kill("\n".join(self._kill))
            if line.startswith(END_OF_KILL) or len(self._kill) > MAX_KILL_LINES:
                self._kill = []

    def _tell_of_kill(self, text: str) -> None:
        if said := memory_kill(text):
            self._kills += 1
            if self._kills == 1:
                self._say(f"warning: {said}; what can be started again is, but the run slows down or fails")

    def _say(self, line: str) -> None:
        if display := Display.on_screen:
            display.say(line)
        else:
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"{line}\n".encode(errors="replace"))


class _Tail:
    """The lines that are appended to a file from now on."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def lines(self, last: bool = False) -> list[str]:
        """The whole lines that are new; the last time also what follows the last line break."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        if last:
            self._file.close()
            lines += [self._rest] if self._rest else []
        return [line.decode(errors="replace") for line in lines]


def _raylet_out() -> _Tail | None:
    """The log of this node's raylet, once Ray is connected; a kill on another node shows in its error."""
    node = ray_worker._global_node
    path = Path(node.get_logs_dir_path()) / "raylet.out" if node is not None else None
    return _Tail(path) if path and path.is_file() else None


def raylet_died() -> bool:
    """Whether the raylet that this process has started for itself has ended."""
    node: Any = ray_worker._global_node
    return node is not None and any(kind == "raylet" for kind, _ in node.dead_processes())


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
