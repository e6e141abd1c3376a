"""Whole runs with trackers, as a user starts them: all steps run whatever a tracker does, and its run goes on."""

import json
import os
import signal
from pathlib import Path

import pytest

from runs import NO_EVALUATION, SMALL, STEPS, finish, on_corpus, run, start, wait_for_step

SLEEPS = "import time\ndef Settings(**_):\n    pass\ndef init(**_):\n    time.sleep(1e6)\n"


@pytest.fixture
def offline(monkeypatch):
    for name in [one for one in os.environ if one.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def points(directory: Path, metric: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"file:{directory}/mlruns")
    experiment = client.get_experiment_by_name("trd-ray")
    assert experiment
    [only] = client.search_runs([experiment.experiment_id])
    return [(point.step, point.value) for point in client.get_metric_history(only.info.run_id, metric)]


def test_a_run_beside_a_tracker_that_hangs_makes_all_its_steps(corpus, tmp_path, monkeypatch, offline):
    """A package of the tracker's name that sleeps for ever, in place of the tracker's own."""
    (tmp_path / "fake" / "wandb").mkdir(parents=True)
    (tmp_path / "fake" / "wandb" / "__init__.py").write_text(SLEEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    trackers = ["trackers=[tensorboard,wandb]", "tracking.deadline_s=3"]
    done = run(tmp_path / "run", "train", "miniature_opsd", *SMALL, *on_corpus(corpus), *trackers)
    assert done.code == 0 and len(done.metrics) == STEPS and done.left == [], done.output[-2000:]
    assert "was not done in time (tracking.deadline_s)" in " ".join(done.output.split())


@pytest.mark.long
def test_a_stopped_and_resumed_run_is_one_run_of_its_trackers(tmp_path, offline):
    directory = tmp_path / "run"
    arguments = ["trackers=[wandb,mlflow]", *SMALL, *NO_EVALUATION]
    process = start(directory, "train", "miniature_opsd", *arguments)
    wait_for_step(process, directory, 2)
    process.send_signal(signal.SIGINT)
    stopped = finish(process, directory)
    assert stopped.code == 130 and stopped.left == [], stopped.output[-2000:]
    ids = {
        name: json.loads((directory / "trackers" / f"{name}.json").read_text())["id"] for name in ("wandb", "mlflow")
    }
    done = run(directory, "train", "miniature_opsd", "--resume", *arguments)
    assert done.code == 0 and done.left == [], done.output[-2000:]
    for name, known in ids.items():
        kept = json.loads((directory / "trackers" / f"{name}.json").read_text())
        assert (kept["id"], kept["step"]) == (known, STEPS)
    assert points(directory, "kl/mean") == [(line["step"], line["kl/mean"]) for line in done.metrics]
    assert {f.name.split("-")[-1] for f in directory.glob("wandb/offline-run-*")} == {ids["wandb"]}
    assert not (directory / "tensorboard").exists() or not list((directory / "tensorboard").iterdir())
