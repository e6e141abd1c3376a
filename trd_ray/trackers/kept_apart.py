"""One tracker in a process of its own: the run puts messages into a queue and goes on.

    put(message)  ->  queue (QUEUED)  ->  a thread  --lines of JSON-->  tracker_process.py  ->  W&B or MLflow
    news()        <-  a thread        <--lines of JSON--

Why a process: a library that hangs, holds Python's lock, handles signals, prints over the display or ends its process
does so to its own one. It costs 0.2 GiB and 3 s of one core in the background, and only where the recipe names it.

At the end, `end` gives the tracker its last message, and `wait` waits for it until a deadline. Then its process and all
below it are killed. If the driver dies first, the tracker sees its pipe break, closes its run as failed, and ends.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

QUEUED = 1000  # messages, most of which are a step's 5 KB: what a tracker may be behind
POLL_S = 0.1
QUIET_S = 3.0  # of a wait at the end, before it is said
JOIN_S = 5.0  # for the thread that hears the last words of a process that has ended
PACKAGES = Path(__file__).resolve().parents[2]  # the folder in which this package lies

News = tuple[bool, str]  # whether it is a warning, and the sentence


class KeptApart:
    def __init__(self, name: str, where: str, log: Path, queued: int = QUEUED):
        """`where` is the tracker's class as module:Class; `log` gets whatever its process prints."""
        self.name = name
        self.where = where
        self.log = log
        self.dropped = 0  # messages that found the queue full
        self.gone = False  # its process has ended, or could not start
        self._over = False  # it has said why it ends, or `wait` has ended it
        self._queued = queued
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # `put` bounds it
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._hears: threading.Thread | None = None
        self._writes: threading.Thread | None = None

    def start(self) -> None:
        """Start its process; a failure is a warning of `news`."""
        path = filter(None, [os.environ.get("PYTHONPATH"), str(PACKAGES)])
        read, write = os.pipe()
        try:
            with open(self.log, "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "trd_ray.trackers.tracker_process", self.name, self.where, str(write)],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(write,),
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                    start_new_session=True,  # a Ctrl-C at the terminal is for the run
                )  # fmt: skip
        except OSError as e:
            os.close(read)
            self.gone = True
            self._warn(f"could not be started ({e}): the run goes on without it")
            return
        finally:
            os.close(write)
        self._process = process
        self._hears = threading.Thread(target=self._hear, args=(process, read), name=f"from {self.name}", daemon=True)
        self._hears.start()
        self._writes = threading.Thread(target=self._write, args=(process,), name=f"to {self.name}", daemon=True)
        self._writes.start()

    def put(self, message: dict[str, Any]) -> None:
        """Give the tracker a message, without waiting. What does not fit into the queue is dropped, and counted."""
        if self.gone:
            return
        if self._queue.qsize() < self._queued:
            self._queue.put(_line(message))
            return
        self.dropped += 1
        if self.dropped == 1:
            behind = self._queued
            self._warn(f"is {behind} messages behind: it gets no more until it has caught up; metrics.jsonl has all")

    def news(self) -> list[News]:
        """What there is to say since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    # The end

    def end(self, message: dict[str, Any]) -> None:
        """Put the last message, for which there is always room."""
        self._queue.put(_line(message))
        self._queue.put(None)

    def wait(self, until: Callable[[], float], look: Callable[[], object]) -> None:
        """Wait for the process until then (of time.monotonic); then kill it, with all below it. `look` may raise."""
        process = self._process
        if process is None:
            return
        said = time.monotonic() + QUIET_S
        while process.poll() is None and time.monotonic() < until():
            if time.monotonic() > said:
                said = math.inf
                left = until() - time.monotonic()
                self._news.put(
                    (False, f"waiting for the tracker {self.name}, up to {left:.0f} s (tracking.deadline_s)")
                )
            look()
            time.sleep(POLL_S)
        if process.poll() is None:
            self._over = True
            _kill(process.pid)
            process.wait()
            self._warn("was not done in time (tracking.deadline_s), and was ended: it lacks what it had not taken yet")
        self._process = None
        if self._hears:
            self._hears.join(JOIN_S)
        if self._writes:
            self._writes.join(POLL_S)
        # Something that the process left behind may hold the other end. Who writes into it then waits, and so would
        # who closes it.
        with contextlib.suppress(OSError):
            if process.stdin and self._writes and not self._writes.is_alive():
                process.stdin.close()
        if self.dropped:
            self._warn(f"lacks {self.dropped} messages for which it had no room")

    # The threads

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        with contextlib.suppress(OSError, ValueError):  # it has ended
            while (line := self._queue.get()) is not None:
                process.stdin.write(line)
                process.stdin.flush()

    def _hear(self, process: subprocess.Popen[bytes], read: int) -> None:
        with os.fdopen(read, "rb") as answers:
            for line in answers:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    self._over |= told["over"]
                    if told["said"]:
                        self._news.put((told["warns"], told["said"]))
        self.gone = True
        code = process.wait()
        if not self._over:
            how = f"was killed (signal {-code})" if code < 0 else f"ended by itself (exit code {code})"
            self._warn(f"{how}, and the run goes on without it: its last words are in {self.log}")

    def _warn(self, said: str) -> None:
        self._news.put((True, f"the tracker {self.name} {said}"))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"


def _kill(pid: int) -> None:
    """Kill a process and all below it, such as W&B's service."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                one.kill()
