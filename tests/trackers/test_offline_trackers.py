"""What trackers hold offline is what metrics.jsonl holds: W&B's file, MLflow's store, TensorBoard's events, read back.

W&B's file is a LevelDB log of W&B's own protocol buffers; the others have readers of their own.
"""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trd_ray.config import Recipe, dump, from_tree
from trd_ray.record.metrics import Metrics
from trd_ray.rows import to_table
from trd_ray.trackers.following import Ending, Following, facts_of
from trd_ray.trackers.shown_rows import COLUMNS, few
from trd_ray.trackers.to_mlflow import Names, flat

HOSTILE = "<script>alert(1)</script> \u202e [x](javascript:1) \x00 ```\n" + "x" * 9000
STEP = {
    "y_o/passed": 0.25, "y_r/passed": 0.875, "kl/mean": 0.12345678901234, "lr": 2e-6, "trained_rows": 12,
    "trained_rows/y_o": 5, "trained_rows/y_r": 7, "dropped/not in the subset": 4, "source/a.b/pass_rate": 0.5,
    "evaluation/avg": 0.75, "own/avg@4": 1.5, "loss": float("nan"), "grad_norm": float("inf"), 
    "time_s": 1_795_000_000.5,
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    for name in [one for one in os.environ if one.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def recipe(*trackers: str, **tracking: Any) -> Recipe:
    given = {"project": "gardens", "tags": ["smoke"], "group": "ours"} | tracking
    return from_tree({"name": "mine", "steps": 9, "trackers": list(trackers), "tracking": given})


def rows(step: int) -> Any:
    order = {"row": 7, "step": step - 1, "epoch": 0, "sample_index": 0, "seed": 0}
    made = {"problem_id": "p", "problem": HOSTILE, "answer": "5", "reference": "", "train": True, "trajectory": "y_r"}
    attempt = {"ids": [1], "text": HOSTILE, "passed": False, "extracted": "4", "detail": "not equal"}
    return to_table(
        [made | order | {"y_o": attempt, "y_r": attempt | {"passed": True, "extracted": "5", "detail": ""}}]
    )


def run(place: Path, given: Recipe, steps: range, done: int = 0, how: str = "done") -> list[str]:
    """A run's steps in metrics.jsonl, TensorBoard and the recipe's trackers; returns what those said."""
    (place / "recipe.yaml").write_text(dump(given))
    (place / "summary.md").write_text("# mine\n\nIt helped.")
    (place / "report.html").write_text("<title>report</title>")
    end = Ending(how, "", {"final/base/avg@4": 0.5}, "# mine", [place / name for name in ("report.html", "summary.md")])
    following = Following.of(given)
    with (
        Metrics(place, 9, done, "tensorboard" in given.trackers) as metrics,
        following.during(place, facts_of(given, "train", done, {"command": "trd train mine"}), lambda e: end),
    ):
        for step in steps:
            measured = STEP | {"kl/mean": STEP["kl/mean"] / step, "seconds/step": float(step)}
            metrics.log(step, measured)
            following.step(step, measured, rows(step))
    said = following.news()
    assert [text for warns, text in said if warns] == [], (place / "logs").glob("*.txt")
    return [text for _, text in said if not text.startswith("waiting for")]  # this machine may be busy


def recorded(place: Path) -> dict[int, dict[str, float]]:
    """metrics.jsonl, without its nulls: a resumed run has one line for each step, as its directory is rewound."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return {line.pop("step"): {name: value for name, value in line.items() if value is not None} for line in lines}


# W&B


def records(file: Path) -> Iterator[Any]:
    """The protocol buffers in W&B's transaction log: LevelDB's log format, in blocks of 32 KiB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def in_wandb(place: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any], list[Any]]:
    """History by step, summary, and every record, of all files of the run in the order in which they were begun."""
    history: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    found = [one for file in sorted(place.glob("wandb/offline-run-*/*.wandb")) for one in records(file)]
    for record in found:
        if record.WhichOneof("record_type") == "history":
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = int(values.pop("_step", record.history.step.num))
            assert not history.get(step, {}).keys() & values.keys(), "no point comes twice"
            history.setdefault(step, {}).update(values)
        for item in record.summary.update if record.WhichOneof("record_type") == "summary" else ():
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return history, summary, found


def numbers_of(history: dict[int, dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Without what W&B adds."""
    return {
        step: {name: value for name, value in found.items() if not name.startswith(("_", "samples/"))}
        for step, found in history.items()
    }


def test_wandb_offline_holds_the_numbers_of_metrics_jsonl(place):
    [said] = run(place, recipe("wandb"), range(1, 4))
    [folder] = place.glob("wandb/offline-run-*")
    assert said == f"wandb: offline, in {folder}; `wandb sync {folder}` uploads it"
    history, summary, found = in_wandb(place)
    assert numbers_of(history) == recorded(place) and set(history) == {1, 2, 3}
    assert summary["final/base/avg@4"] == 0.5 and summary["ended"] == "done"
    [begun] = [one.run for one in found if one.WhichOneof("record_type") == "run"][:1]
    assert (begun.project, begun.display_name, begun.run_group, list(begun.tags)) == (
        "gardens",
        "mine",
        "ours",
        ["smoke"],
    )
    assert begun.run_id == json.loads((place / "trackers" / "wandb.json").read_text())["id"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["steps"] == 9 and config["learner"]["lr"] == 2e-6
    [table] = folder.glob("files/media/table/samples_*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == COLUMNS and shown["data"] == few(rows(1), 1, 4)
    artifacts = [one.artifact for one in found if one.WhichOneof("record_type") == "artifact"]
    artifacts += [one.request.log_artifact.artifact for one in found if one.request.HasField("log_artifact")]
    files = {content.path for one in artifacts for content in one.manifest.contents}
    assert {"report.html", "summary.md"} <= files
    assert [one.exit.exit_code for one in found if one.WhichOneof("record_type") == "exit"] == [0]


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb_without_double_points(place):
    run(place, recipe("wandb"), range(1, 4), how="failed")
    lines = (place / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place / "metrics.jsonl").write_text("".join(lines[:2]))  # the checkpoint was that of step 2
    time.sleep(1.1)  # W&B names its folders by the second
    said = run(place, recipe("wandb", project="gardens", sample_every_steps=1), range(3, 6), done=2)
    assert any("wandb has the steps up to 3 already" in text for text in said)
    assert len(list(place.glob("wandb/offline-run-*"))) == 2
    history, _, found = in_wandb(place)
    assert numbers_of(history) == recorded(place) and set(history) == {1, 2, 3, 4, 5}
    assert len({one.run.run_id for one in found if one.WhichOneof("record_type") == "run"}) == 1


def test_wandb_s_own_variables_hold_and_keys_of_the_recipe_come_first(place, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "from-outside")
    monkeypatch.setenv("WANDB_NAME", "named-outside")
    monkeypatch.setenv("WANDB_TAGS", "from,outside")
    monkeypatch.setenv("WANDB_DIR", str(place.parent / "elsewhere"))
    (place.parent / "elsewhere").mkdir()
    run(place, recipe("wandb", project=None, tags=[]), range(1, 2))
    assert not (place / "wandb").exists()
    _, _, found = in_wandb(place.parent / "elsewhere")
    begun = next(one.run for one in found if one.WhichOneof("record_type") == "run")
    assert (begun.project, begun.display_name, set(begun.tags)) == (
        "from-outside",
        "named-outside",
        {"from", "outside"},
    )


def test_wandb_that_is_disabled_or_that_nobody_has_logged_in_to_ends_nothing(place, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert run(place, recipe("wandb"), range(1, 2)) == ["wandb: disabled (WANDB_MODE)"]
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("NETRC", str(place / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(place))
    following = Following.of(recipe("wandb", deadline_s=30))
    with following.during(place, facts_of(recipe("wandb"), "train", 0, {}), lambda e: Ending()):
        following.step(1, {"loss": 1.0})
    [warning] = [text for warns, text in following.news() if warns]
    assert warning.startswith("the tracker wandb failed in its begin (") and "the run goes on without it" in warning


# MLflow


def in_mlflow(uri: str, experiment: str = "gardens") -> tuple[Any, Any]:
    """A client, and the only run of the experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found
    [only] = client.search_runs([found.experiment_id])
    return client, only


@pytest.fixture
def store(place, monkeypatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # of this process, which reads
    return f"file:{place}/mlruns"


def test_mlflow_in_files_holds_the_numbers_of_metrics_jsonl(place, store):
    [said] = run(place, recipe("mlflow"), range(1, 4))
    client, kept = in_mlflow(store)
    assert said == f"mlflow: {store}, experiment gardens, run {kept.info.run_id}"
    expected = recorded(place)
    names = {name: Names().of([name])[name] for name in expected[1]} | {
        "trained_rows/y_o": "trained_rows.y_o", "trained_rows/y_r": "trained_rows.y_r", "own/avg@4": "own/avg-4",
        "dropped/not in the subset": "dropped/not in the subset",
    }  # fmt: skip
    assert set(kept.data.metrics) == {*names.values(), "final/base/avg-4"}
    for name, there in names.items():
        history = client.get_metric_history(kept.info.run_id, there)
        assert [(point.step, point.value) for point in history] == [(s, expected[s][name]) for s in (1, 2, 3)]
        assert {point.timestamp for point in history} == {1_795_000_000_500}
    assert kept.info.status == "FINISHED" and kept.info.run_name == "mine"
    assert kept.data.params["steps"] == "9" and kept.data.params["learner.lr"] == "2e-06"
    assert kept.data.tags["group"] == "ours" and kept.data.tags["tag.smoke"] == "true"
    assert {one.path for one in client.list_artifacts(kept.info.run_id)} == {
        "report.html",
        "summary.md",
        "samples.json",
    }
    table = json.loads(
        (Path(kept.info.artifact_uri.removeprefix("file:").removeprefix("//")) / "samples.json").read_text()
    )
    assert table["columns"] == COLUMNS and table["data"] == few(rows(1), 1, 4)


def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow_without_double_points(place, store):
    run(place, recipe("mlflow"), range(1, 4), how="stopped")
    assert in_mlflow(store)[1].info.status == "KILLED"
    lines = (place / "metrics.jsonl").read_text().splitlines(keepends=True)
    (place / "metrics.jsonl").write_text("".join(lines[:2]))
    longer = recipe("mlflow").model_copy(update={"steps": 12})
    run(place, longer, range(3, 6), done=2)
    client, kept = in_mlflow(store)
    history = client.get_metric_history(kept.info.run_id, "kl/mean")
    assert [(p.step, p.value) for p in history] == [(s, found["kl/mean"]) for s, found in recorded(place).items()]
    assert kept.info.status == "FINISHED"
    assert kept.data.params["steps"] == "9" and kept.data.tags["changed.steps"] == "12"


def test_mlflow_s_own_variables_hold(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{place.parent}/shared")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "outside")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "named-outside")
    run(place, recipe("mlflow", project=None), range(1, 2))
    assert not (place / "mlruns").exists()
    found = in_mlflow(f"file:{place.parent}/shared", "outside")[1]
    assert found.data.metrics["seconds/step"] == 1.0 and found.info.run_name == "named-outside"


def test_names_that_a_file_store_cannot_hold_are_told_apart():
    names = Names()
    given = ["a", "a/b", "a/b/c", "x/y", "../up", "/root", "own/p@1", "ö/ä", "", "s p/c:d"]
    found = names.of(given)
    assert found["a/b"] == "a.b" and found["a/b/c"] == "a.b.c" and found["own/p@1"] == "own/p-1"
    assert names.of(["x"]) == {"x": "x.value"} and names.of(given) == found
    from mlflow.utils.validation import _validate_metric_name

    for name in found.values():
        _validate_metric_name(name)


def test_a_recipe_is_flat_as_overrides_are_written():
    found = dict(flat(from_tree({"name": "mine", "learner": {"lora": {}}}).model_dump(mode="json")))
    assert found["learner.lora.rank"] == 64 and found["trackers"] == ["tensorboard"] and "learner" not in found


# TensorBoard, and all at once


def test_tensorboard_holds_the_numbers_of_metrics_jsonl(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(place, recipe("tensorboard"), range(1, 4))
    board = EventAccumulator(str(place / "tensorboard"))
    board.Reload()
    expected = recorded(place)
    assert set(board.Tags()["scalars"]) == set(expected[1])
    for name in expected[1]:
        read = [(e.step, e.value) for e in board.Scalars(name)]
        assert read == [(s, pytest.approx(expected[s][name], rel=1e-6)) for s in (1, 2, 3)]  # it keeps float32


def test_all_three_at_once_leave_no_process(place, store):
    import psutil

    before = {one.pid for one in psutil.Process().children(recursive=True)}
    run(place, recipe("tensorboard", "wandb", "mlflow"), range(1, 3))
    assert numbers_of(in_wandb(place)[0]) == recorded(place)
    assert in_mlflow(store)[1].data.metrics["seconds/step"] == 2.0
    assert {one.pid for one in psutil.Process().children(recursive=True)} <= before
    assert list((place / "tensorboard").iterdir())


def test_without_tensorboard_in_the_recipe_there_are_none_of_its_files(place):
    run(place, recipe("mlflow"), range(1, 2))
    assert not (place / "tensorboard").exists()


DRIVER = """
import sys, time
from pathlib import Path
from trd_ray.config import from_tree
from trd_ray.trackers.following import Ending, Following, facts_of
given = from_tree({"name": "mine", "trackers": ["wandb", "mlflow"]})
with Following.of(given).during(Path(sys.argv[1]), facts_of(given, "train", 0, {}), lambda e: Ending()) as f:
    f.step(1, {"loss": 1.0})
    seen = 0
    while seen < 2:
        seen += len(f.news())
        time.sleep(0.1)
    f.step(2, {"loss": 2.0})
    print("both", flush=True)
    time.sleep(1e6)
"""


def test_a_killed_driver_leaves_no_service_of_wandb_and_its_runs_are_closed_as_failed(place, store):
    import psutil

    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(place)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout and driver.stdout.readline() == "both\n"
    below = psutil.Process(driver.pid).children(recursive=True)
    assert any("wandb-core" in " ".join(one.cmdline()) for one in below)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert in_mlflow(store, "trd-ray")[1].info.status == "FAILED"
    history, summary, found = in_wandb(place)
    assert summary["ended"] == "lost" and history[2]["loss"] == 2.0
    assert [one.exit.exit_code for one in found if one.WhichOneof("record_type") == "exit"] == [1]
