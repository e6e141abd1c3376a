"""A Ray cluster on this machine for rounds that spare Ray: a head and further nodes, with a token of its own.

    Nodes(folder, workers) -> start() -> address, environment of a driver -> mend() after a node has died -> stop()

All of its processes are below this one, and so are those of the runs on it. Its temporary folder is its own, so that
what a run leaves there can be told.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from chaos_rounds.processes import below, of_role
from trd_ray.errors import RunFailed

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
START_S = 180
JOINED = "Ray runtime started"
CPUS = {1: ["2"], 3: ["1", "1", "1"]}  # of each node: a run does not fit onto one of three
MEMORY, STORE = 16_000_000_000, 150_000_000  # bytes, whatever is free just now


class Nodes:
    # What lies in its temporary folder besides what Ray keeps there. Ray's dashboard listens in a `pymp-`.
    OWN = ("token", "node-", "pymp-")

    def __init__(self, temporary: Path, environment: dict[str, str], count: int):
        """`temporary` is a short path, because Ray's sockets lie in it. `environment` is that of its processes."""
        self.temporary, self.count = temporary, count
        self.environment = environment
        self.processes: list[subprocess.Popen] = []
        self.port = self.dashboard_port = 0

    @property
    def roots(self) -> list[int]:
        return [process.pid for process in self.processes]

    @property
    def lives(self) -> bool:
        """Whether the head does."""
        return bool(self.processes) and self.processes[0].poll() is None and bool(of_role("gcs", below(self.roots)))

    def driver(self) -> dict[str, str]:
        """Environment variables of a driver that connects."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.environment["RAY_AUTH_TOKEN_PATH"],
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}",
        }

    def start(self) -> None:
        self.temporary.mkdir(parents=True, exist_ok=True)
        token = self.temporary / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.port, self.dashboard_port = _free_port(), _free_port()
        own = {"RAY_AUTH_TOKEN_PATH": str(token), "TMPDIR": str(self.temporary), "RAY_TMPDIR": str(self.temporary)}
        # A busy machine is no reason for a node to be given up.
        own |= {"RAY_raylet_start_wait_time_s": "120", "RAY_worker_niceness": "0"}
        own |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.environment = self.environment | own
        head = [f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--temp-dir={self.temporary}/ray"]
        self._add(["start_head.sh", *head], CPUS[self.count][0])
        self._until(lambda: _answers(self.dashboard_port), "no cluster could be started here")
        self._fill()

    def mend(self) -> None:
        """Start nodes in the place of those that have died, and all of it where the head has."""
        if not self.lives:
            self.stop()
            return self.start()
        self.processes = [p for i, p in enumerate(self.processes) if i == 0 or self._lives(p)]
        self._fill()

    def _fill(self) -> None:
        """One after the other: of two raylets that start at once on one machine, sometimes one never joins."""
        while len(self.processes) < self.count:
            try:
                self._join()
            except RunFailed:  # on a busy machine; it is started once more
                _end([self.processes.pop()])
                self._join()

    def _join(self) -> None:
        self._add(["start_worker.sh", f"127.0.0.1:{self.port}"], CPUS[self.count][len(self.processes)])
        self._until(lambda: self._joined(self.processes[-1]), "a node did not join the cluster")

    def _until(self, ready: Callable[[], bool], otherwise: str) -> None:
        """Wait for the process that was started last."""
        process = self.processes[-1]
        deadline = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                # The end of its log, because the folder is deleted when all of it ends.
                said = self._log(process).read_text(errors="replace")[-2000:]
                raise RunFailed(f"{otherwise}: {said}")
            time.sleep(0.2)

    def _log(self, process: subprocess.Popen) -> Path:
        return self.temporary / f"node-{process.pid}.log"

    def _joined(self, process: subprocess.Popen) -> bool:
        return JOINED in self._log(process).read_text(errors="replace")

    def _lives(self, process: subprocess.Popen) -> bool:
        return process.poll() is None and bool(of_role("raylet", below([process.pid])))

    def _add(self, script: list[str], cpus: str) -> None:
        size = [f"--num-cpus={cpus}", f"--memory={MEMORY}", f"--object-store-memory={STORE}"]
        # Several nodes of one machine take whatever ports are free.
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={_free_port()}"]
        log = self.temporary / "node-starting.log"
        with open(log, "w") as out:
            process = subprocess.Popen(
                [CLUSTER / script[0], *script[1:], "--block", *size, *ports],
                env=self.environment | {"PYTHONUNBUFFERED": "1"},  # so that the log says at once that it has joined
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        log.rename(self._log(process))
        self.processes.append(process)

    def stop(self) -> None:
        """End all of it, and wait for that."""
        _end(self.processes)
        self.processes = []
        shutil.rmtree(self.temporary, ignore_errors=True)


def _end(processes: list[subprocess.Popen]) -> None:
    """End nodes, the head last, with all that is below them."""
    seen = below([process.pid for process in processes])
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    deadline = time.monotonic() + 10
    while (left := [one for one in seen if one.lives()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, 9)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants the token
    except OSError:
        return False
    return True
