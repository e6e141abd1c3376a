"""`ray job submit` to a cluster with token authentication, as cluster/README.md says."""

import subprocess
import time

import pytest

from heads import BIN, head_of_its_own
from runs import NO_EVALUATION, REPO, SMALL, Finished, engines

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
    arguments = [f"run_dir={directory}", *SMALL, "steps=40", *NO_EVALUATION, "--resume", "auto"]
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
