"""`python -m stream_bench.meter PID`: what the process PID and all below it take, by what they do for a run.

    /proc, twice a second -> CPU seconds of each process, size of the object store, memory of PID
    a line on stdin       -> one line of JSON with all of it, up to now

It is a process of its own, so that measuring costs the driver nothing. It ends with its standard input.
"""

import contextlib
import json
import os
import select
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

TICK_S = 0.5
DRIVER, LEARNER, HOSTS = "driver", "learner", "engine hosts"
# The beginning of a process's title -> its role. Ray's title of a worker is that of the actor or the task in it.
ROLES = {
    "ray::HostedPool": "pools",
    "ray::EngineHost": HOSTS,
    "ray::MapWorker": "stages",
    "ray::RayTrainWorker": LEARNER,
    "ray::Mailbox": "mailbox",
    "ray::verdicts": "verifiers",
    "ray::Shelf": "shelf",
    "ray::Map": "verifiers",
    "ray::verif": "verifiers",
}
RAY = "Ray's own"  # raylet, control service, agents, and the small actors of Ray Data and Ray Train


@dataclass
class Usage:
    """CPU seconds of each process up to now, and the most bytes so far."""

    processes: dict[str, tuple[str, float]] = field(default_factory=dict)  # pid -> role, seconds
    store_bytes: int = 0
    driver_bytes: int = 0


class Watch:
    def __init__(self, pid: int):
        self.driver = psutil.Process(pid)
        self.roles: dict[int, str] = {}
        self.usage = Usage()

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = self.driver.children(recursive=True)
            self.usage.driver_bytes = max(self.usage.driver_bytes, self.driver.memory_info().rss)
            for process in [self.driver, *below]:
                if process.pid != os.getpid():
                    with contextlib.suppress(psutil.Error, IndexError):
                        self._add(process)

    def _add(self, process: psutil.Process) -> None:
        seconds = _cpu_seconds(process)
        title = " ".join(process.cmdline())
        self.roles.setdefault(process.pid, RAY)
        if process.pid == self.driver.pid:
            self.roles[process.pid] = DRIVER
        elif title.startswith("ray::IDLE"):
            # Between two tasks, which may be shorter than a tick. Only verifiers are tasks; actors keep their titles.
            if self.roles[process.pid] == RAY:
                self.roles[process.pid] = "verifiers"
        elif title.startswith("ray::"):
            self.roles[process.pid] = next((role for start, role in ROLES.items() if title.startswith(start)), RAY)
        elif "answer_process" in title:  # a verifier's child
            self.roles[process.pid] = "verifiers"
        elif "raylet/raylet" in title:
            self.usage.store_bytes = max(self.usage.store_bytes, _plasma_bytes(process.pid))
        self.usage.processes[str(process.pid)] = (self.roles[process.pid], seconds)


def _cpu_seconds(process: psutil.Process) -> float:
    """What it and its threads have used, also those that have ended, to the nanosecond: /proc tells ticks of 10 ms."""
    clock = ~process.pid << 3 | 2  # as clock_getcpuclockid(3) makes it
    try:
        return time.clock_gettime(clock)
    except OSError as e:
        raise psutil.NoSuchProcess(process.pid) from e


def _plasma_bytes(raylet: int) -> int:
    """How much of the shared memory was ever written to: pages of the object store are not given back."""
    files: dict[int, int] = {}
    for entry in os.scandir(f"/proc/{raylet}/fd"):
        with contextlib.suppress(OSError):
            if "plasma" in os.readlink(entry.path):
                found = os.stat(entry.path)
                files[found.st_ino] = found.st_blocks * 512
    return sum(files.values())


def main(pid: int) -> None:
    watch = Watch(pid)
    while True:
        asked = bool(select.select([sys.stdin], [], [], TICK_S)[0])
        watch.look()
        if asked:
            if not sys.stdin.readline():
                return
            print(json.dumps(asdict(watch.usage)), flush=True)


class Meter:
    """The driver's side: start it, ask it, end it."""

    def __init__(self, folder: str):
        import subprocess

        environment = os.environ | {"PYTHONPATH": folder}
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "stream_bench.meter", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def read(self) -> Usage:
        self.process.stdin.write("now\n")
        self.process.stdin.flush()
        return Usage(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)


if __name__ == "__main__":
    main(int(sys.argv[1]))
