import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from trd_ray import rows as schema
from trd_ray.config import from_tree, load
from trd_ray.errors import UserError
from trd_ray.evaluate.stats import score
from trd_ray.run.directory import RunDirectory

RECIPE = from_tree({"name": "r", "steps": 4})


def rows(step: int, text: str = "hello") -> list[dict]:
    plain = {"problem_id": "p", "problem": "?", "answer": "5", "reference": ""}
    order = {"row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
    made = {"y_o_ids": [1, 2], "y_o_text": text, "y_o_passed": True, "y_o_finish": "stop", "y_o_extracted": "5"}
    return [plain | order | made]


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory.create(tmp_path / "runs" / "r", RECIPE)
    yield made
    made.release()


def test_a_new_directory_says_what_runs_and_where(directory):
    assert load(str(directory.path / "recipe.yaml")) == RECIPE
    (start,) = json.loads((directory.path / "environment.json").read_text())
    assert {"python", "packages", "command", "host", "cpu", "gpus", "commit"} <= start.keys()
    assert {"torch", "ray", "transformers", "pyarrow"} <= start["packages"].keys()
    assert [p.name for p in directory.path.parent.iterdir()] == ["r"]  # nothing temporary is left beside it


def test_an_empty_directory_may_become_a_run(tmp_path):
    RunDirectory.create(tmp_path, RECIPE).release()
    assert (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_in_use_is_refused_and_left_as_it_was(directory, resume):
    before = (directory.path / "environment.json").read_text()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} .*set run_dir"):
        RunDirectory.create(directory.path, RECIPE, resume=resume)
    assert (directory.path / "environment.json").read_text() == before


def test_a_directory_is_free_again_when_its_process_is_killed(tmp_path):
    code = (
        "import sys, time; from trd_ray.config import from_tree; from trd_ray.run.directory import RunDirectory;"
        "d = RunDirectory.create(sys.argv[1], from_tree({'name': 'r', 'steps': 4})); print('held', flush=True);"
        "time.sleep(60)"
    )
    path = str(tmp_path / "r")
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            RunDirectory.create(path, RECIPE, resume=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    RunDirectory.create(path, RECIPE, resume=True).release()


def test_a_finished_run_is_not_overwritten_but_resumed_when_asked(directory):
    directory.release()
    with pytest.raises(UserError, match="already holds a run: continue it with --resume"):
        RunDirectory.create(directory.path, RECIPE)
    RunDirectory.create(directory.path, RECIPE, resume=True).release()
    assert len(json.loads((directory.path / "environment.json").read_text())) == 2


def test_a_place_that_cannot_be_a_run_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.create(tmp_path / "file", RECIPE)
    with pytest.raises(UserError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file" / "below", RECIPE)
    with pytest.raises(UserError, match="holds other files"):
        RunDirectory.create(tmp_path, RECIPE)
    with pytest.raises(UserError, match="leave --resume out"):
        RunDirectory.create(tmp_path / "none", RECIPE, resume=True)
    with pytest.raises(UserError, match="no run directory"):
        RunDirectory.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_resuming_with_another_recipe_names_what_differs(directory):
    directory.release()
    other = from_tree({"name": "r", "steps": 9, "seed": 7, "learner": {"lr": 1e-3}})
    with pytest.raises(UserError, match=r"learner.lr=2e-06 \(now 0.001\); seed=0 \(now 7\)"):
        RunDirectory.create(directory.path, other, resume=True)
    assert load(str(directory.path / "recipe.yaml")) == RECIPE
    RunDirectory.create(directory.path, RECIPE, resume=True).release()  # and the refusal let go of the directory


def test_a_run_may_be_resumed_for_longer_and_on_another_cluster(directory):
    directory.release()
    longer = from_tree({"name": "r", "steps": 9, "cluster": {"local_cpus": 8}, "evaluation": {"samples": 4}})
    RunDirectory.create(directory.path, longer, resume=True).release()
    assert load(str(directory.path / "recipe.yaml")) == longer


def test_rows_come_back_in_the_order_of_steps(directory):
    for step in (2, 0, 1):
        directory.write_rows(step, rows(step))
    table = directory.read_rows().to_table()
    assert table.schema.equals(schema.ROW)
    assert table["step"].to_pylist() == [0, 1, 2]
    metadata = pq.ParquetFile(directory.path / "rows" / "step-000000.parquet").metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_run_without_rows_reads_as_none(directory):
    assert directory.read_rows().to_table().num_rows == 0
    assert directory.read_metrics() == []


def test_rows_that_are_not_text_are_kept(directory):
    directory.write_rows(0, rows(0, "a\ud800\x00b"))
    assert directory.read_rows().to_table()["y_o_text"].to_pylist() == ["a?\x00b"]


def test_a_checkpoint_counts_only_when_it_is_whole(directory):
    assert directory.latest_checkpoint() is None
    with directory.checkpoint(2) as folder:
        (folder / "weights").write_text("2")
    with pytest.raises(RuntimeError), directory.checkpoint(3) as folder:
        (folder / "weights").write_text("3")
        raise RuntimeError
    (directory.path / "checkpoints" / ".step-000004.tmp").mkdir()  # what a killed process leaves
    steps, folder = directory.latest_checkpoint()
    assert (steps, (folder / "weights").read_text()) == (2, "2")


def test_the_latest_checkpoint_is_the_highest_number_not_the_highest_name(directory):
    for steps in (999_999, 1_000_000):
        with directory.checkpoint(steps):
            pass
    assert directory.latest_checkpoint()[0] == 1_000_000


def test_rewinding_forgets_exactly_the_steps_after_the_checkpoint(directory):
    lines = [json.dumps({"step": step, "loss": step}) + "\n" for step in range(4)]
    (directory.path / "metrics.jsonl").write_text("".join(lines) + '{"step": 4, "lo')  # a crash in the middle of a line
    for step in range(5):
        directory.write_rows(step, rows(step))
    for steps in (2, 4):
        with directory.checkpoint(steps):
            pass
    directory.rewind(2)
    assert [m["step"] for m in directory.read_metrics()] == [0, 1]
    assert directory.read_rows().to_table()["step"].to_pylist() == [0, 1]
    assert directory.latest_checkpoint()[0] == 2


def test_an_evaluation_comes_back_with_its_rows(directory):
    for name, step in (("trained", 4), ("base", 0)):
        made = score(rows(0), name=name, step=step, version=step, resamples=100, seed=0)
        directory.write_evaluation(made, rows(0))
    assert [s.name for s in directory.read_evaluations()] == ["base", "trained"]
    assert pq.read_table(directory.path / "evaluation" / "base.parquet").num_rows == 1
