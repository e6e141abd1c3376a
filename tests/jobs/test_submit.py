"""`ray job submit` to a cluster with token authentication, as cluster/README.md says."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from runs import NO_EVALUATION, SMALL, Finished, descendants, engines

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """A head of its own: ports, token and temporary folder; yields the environment that submits to it."""
    port = free_port()
    (tmp_path / "token").write_text(secrets.token_hex(32))
    temp = Path(f"/tmp/trd-{os.getpid()}")  # Ray's sockets need a short path
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    ports = [f"--port={free_port()}", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
    size = ["--num-cpus=2", "--object-store-memory=300000000"]
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(
            [ROOT / "cluster" / "start_head.sh", "--block", f"--temp-dir={temp}", *ports, *size],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 90
    while not answers(port):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    yield process.pid, environment
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


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/train.py", "miniature_opsd"]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def test_a_submitted_job_trains_and_its_log_can_be_followed(head, tmp_path):
    directory = tmp_path / "run"
    pid, environment = head
    job = submit(environment, f"run_dir={directory}", *SMALL, *NO_EVALUATION, "steps=2")
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-2000:]
    assert "step 2/2" in job.stdout and "succeeded" in job.stdout
    assert len(Finished(0, "", directory, []).rows) == 32
    assert engines(pid) == []

    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    refused = submit(environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)}, f"run_dir={tmp_path / 'other'}", *SMALL)
    assert refused.returncode != 0 and not (tmp_path / "other").exists()

    relative = submit(environment, *SMALL)
    assert relative.returncode != 0 and "set run_dir to a folder that all nodes see" in relative.stdout


@pytest.mark.long
def test_a_stopped_job_goes_on_with_the_very_same_command_until_it_is_done(head, tmp_path):
    directory = tmp_path / "run"
    pid, environment = head
    arguments = [f"run_dir={directory}", *SMALL, *NO_EVALUATION, "--resume", "auto"]
    wait = ["--no-wait", "--submission-id", "first"]
    command = [BIN / "ray", "job", "submit", *wait, "--working-dir", ".", "--", "python", "jobs/train.py"]
    subprocess.run([*command, "miniature_opsd", *arguments], env=environment, cwd=ROOT, check=True, timeout=120)
    deadline = time.monotonic() + 300
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stop = [BIN / "ray", "job", "stop", "first"]
    stopped = subprocess.run(stop, env=environment, capture_output=True, text=True, timeout=300)
    logs = [BIN / "ray", "job", "logs", "first"]
    said = subprocess.run(logs, env=environment, capture_output=True, text=True, timeout=60).stdout
    done = len(metrics.read_text().splitlines())
    assert f"stopped by SIGTERM; checkpoint {done} is kept" in said, stopped.stdout + said[-3000:]
    assert "`python jobs/train.py miniature_opsd" in said and engines(pid) == []
    for words in ("step 5/5", "nothing is left to do"):
        again = submit(environment, *arguments)
        assert again.returncode == 0 and words in again.stdout, again.stdout[-3000:]
    assert sorted(row["row"] for row in Finished(0, "", directory, []).rows) == list(range(80))
