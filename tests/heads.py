"""A Ray cluster of one machine as cluster/README.md starts it: ports, token and temporary folder of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from runs import REPO, descendants

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    pid: int
    port: int
    dashboard_port: int
    environment: dict[str, str]  # of a program that submits to it

    @property
    def token(self) -> str:
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def head_of_its_own(folder: Path, path: str = os.environ["PATH"]) -> Iterator[Head]:
    """`path` is what its nodes find programs by; `folder` gets its token and its log."""
    (folder / "token").write_text(secrets.token_hex(32))
    temp = Path(f"/tmp/trd-{os.getpid()}")  # Ray's sockets need a short path
    port, dashboard_port = free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "PATH": f"{BIN}:{path}",
    }
    ports = [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={free_port()}"]
    size = ["--num-cpus=2", "--memory=16000000000", "--object-store-memory=300000000"]  # whatever is free just now
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            [REPO / "cluster" / "start_head.sh", "--block", f"--temp-dir={temp}", *ports, *size],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while not answers(dashboard_port):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.5)
        yield Head(process.pid, port, dashboard_port, environment | {"PATH": f"{BIN}:{os.environ['PATH']}"})
    finally:
        below = descendants(process.pid)
        process.terminate()
        process.wait(60)
        for left in psutil.wait_procs(below, timeout=3)[1]:
            left.kill()
        shutil.rmtree(temp, ignore_errors=True)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants the token
    except OSError:
        return False
    return True
