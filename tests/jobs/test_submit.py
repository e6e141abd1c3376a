"""`ray job submit` to a cluster with token authentication, as cluster/README.md says."""

import contextlib
import json
import subprocess
import time
import urllib.request

import psutil
import pytest

from heads import BIN, Head, head_of_its_own
from runs import NO_EVALUATION, REPO, SMALL, Finished, descendants, engines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def head(tmp_path):
    with head_of_its_own(tmp_path) as started:
        yield started


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/train.py", "miniature_opsd"]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=REPO, capture_output=True, text=True, timeout=400
    )


@pytest.mark.long
def test_a_submitted_job_trains_and_its_log_can_be_followed(head, tmp_path):
    directory = tmp_path / "run"
    pid, environment = head.pid, head.environment
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
    pid, environment = head.pid, head.environment
    # The command that stops it takes seconds to start, by which a run of few steps would be done.
    arguments = [f"run_dir={directory}", *SMALL, "steps=40", *NO_EVALUATION]
    wait = ["--no-wait", "--submission-id", "first"]
    command = [BIN / "ray", "job", "submit", *wait, "--working-dir", ".", "--", "python", "jobs/train.py"]
    subprocess.run([*command, "miniature_opsd", *arguments], env=environment, cwd=REPO, check=True, timeout=120)
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
    for words in ("step 40/40", "nothing is left to do"):
        again = submit(environment, *arguments)
        assert again.returncode == 0 and words in again.stdout, again.stdout[-3000:]
    assert sorted(row["row"] for row in Finished(0, "", directory, []).rows) == list(range(640))


@pytest.mark.long
def test_the_driver_of_a_job_is_killed_and_the_same_submission_again_is_all_it_takes(head, tmp_path):
    directory = tmp_path / "run"
    arguments = [f"run_dir={directory}", *SMALL, *NO_EVALUATION]
    command = [BIN / "ray", "job", "submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", "--"]
    command += ["python", "jobs/train.py", "miniature_opsd", *arguments]
    subprocess.run(command, env=head.environment, cwd=REPO, check=True, timeout=120)
    deadline = time.monotonic() + 300
    while not list(directory.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    [learner] = called(head.pid, "ray::RayTrainWorker")
    learner.suspend()  # so that the run is still under way
    second = submit(head.environment, *arguments)
    assert second.returncode != 0 and f"run directory {directory} is in use by process" in second.stdout
    supervisor = min(called(head.pid, "jobs/train.py", python=True), key=lambda p: len(p.parents()))
    [driver] = supervisor.children()
    driver.kill()
    learner.resume()
    while status(head, "first") not in ("FAILED", "SUCCEEDED"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    again = submit(head.environment, *arguments)
    assert again.returncode == 0 and "step 5/5" in again.stdout, again.stdout[-3000:]
    assert sorted(row["row"] for row in Finished(0, "", directory, []).rows) == list(range(80))
    assert engines(head.pid) == []


def called(pid: int, words: str, python: bool = False) -> list[psutil.Process]:
    """The processes below this one with these words in their command."""
    found = []
    for process in descendants(pid):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if words in " ".join(command) and (not python or "python" in command[0]):
                found.append(process)
    return found


def status(head: Head, job: str) -> str:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{head.dashboard_port}/api/jobs/{job}", headers={"Authorization": f"Bearer {head.token}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return json.load(reply)["status"]
