import fcntl
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray import rows as schema
from trd_ray.config import from_tree, load
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.record.claim import is_read, reading
from trd_ray.record.directory import RunDirectory, write_parquet
from trd_ray.record.ledger import facts_of_run
from trd_ray.record.metrics import Metrics
from trd_ray.record.summary import write_summary
from trd_ray.score.stats import score

RECIPE = from_tree({"name": "r", "steps": 4})


def rows(step: int, text: str = "hello") -> list[dict]:
    plain = {"problem_id": "p", "problem": "?", "answer": "5", "reference": ""}
    order = {"row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
    y_o = {"ids": [1, 2], "text": text, "passed": True, "finish": "stop", "extracted": "5"}
    return [plain | order | {"y_o": y_o}]


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
        "import sys, time; from trd_ray.config import from_tree; from trd_ray.record.directory import RunDirectory;"
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


def test_a_run_may_be_resumed_on_other_machines_but_not_with_other_numbers(directory):
    directory.release()
    elsewhere = {"workers": 4, "activation_checkpointing": True, "tokens_per_micro_batch": 1000}
    moved = from_tree({"name": "r", "steps": 4, "sampler": {"replicas": 3}, "learner": elsewhere})
    RunDirectory.create(directory.path, moved, resume=True).release()
    assert load(str(directory.path / "recipe.yaml")) == moved
    other = from_tree({"name": "r", "steps": 4, "sampler": {"temperature": 1.0}, "learner": {"updates_per_step": 2}})
    with pytest.raises(UserError, match=r"updates_per_step=1 \(now 2\); sampler.temperature=0.6 \(now 1.0\)"):
        RunDirectory.create(directory.path, other, resume=True)


def test_rows_come_back_in_the_order_of_steps(directory):
    for step in (3, 1, 2):
        directory.write_rows(step, schema.to_table(rows(step - 1)))
    table = directory.read_rows().to_table()
    assert table.schema.equals(schema.ROW)
    assert table["step"].to_pylist() == [1, 2, 3]
    metadata = pq.ParquetFile(directory.path / "rows" / "step-000001.parquet").metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_steps_of_an_older_version_and_of_this_one_read_as_one_run(directory):
    """As a run leaves them that was begun before y_o was a struct, and resumed since."""
    [row] = rows(1)
    flat = {f"y_o_{name}": value for name, value in row.pop("y_o").items()}
    old = pa.Table.from_pylist([row | flat | {"row": 0}]).replace_schema_metadata({"trd_ray.rows": "3"})
    pq.write_table(old, directory.path / "rows" / "step-000001.parquet")
    directory.write_rows(2, schema.to_table(rows(1, "later")))
    table = directory.read_rows().to_table()
    assert table.schema.equals(schema.ROW)
    assert [row["text"] for row in table["y_o"].to_pylist()] == ["hello", "later"]
    facts = facts_of_run(directory.read_rows())
    assert facts[0] | {"row": 1, "step": 2} == facts[1] and [f["step"] for f in facts] == [1, 2]
    assert "2 rollouts" in write_summary(directory)


def test_an_evaluation_whose_ids_are_arrays_is_scored_and_written_like_one_of_lists(directory):
    plain = [row | {"y_o": row["y_o"] | {"ids": [1, 2, 3], "logprobs": [-0.5] * 3, "passed": True}} for row in rows(0)]
    arrays = [
        row | {"y_o": row["y_o"] | {"ids": np.arange(1, 4, dtype=np.int32), "logprobs": np.full(3, -0.5, np.float32)}}
        for row in plain
    ]
    scores = [score(made, name=name, step=0, version=0, resamples=9, seed=0) for name, made in
              (("lists", plain), ("arrays", arrays))]  # fmt: skip
    assert scores[0].scores == scores[1].scores
    tables = []
    for made, of_score in zip((plain, arrays), scores, strict=True):
        directory.write_evaluation(of_score, made)
        tables.append(pq.read_table(directory.path / "evaluation" / f"{of_score.name}.parquet"))
    assert tables[0] == tables[1] and tables[0]["y_o"].to_pylist()[0]["ids"] == [1, 2, 3]


def test_a_step_that_came_in_parcels_is_one_file_of_one_part(directory):
    whole = schema.to_table([row | {"row": i} for i, row in enumerate(rows(0) * 5)])
    directory.write_rows(1, pa.concat_tables([whole[:2], whole[2:3], whole[3:]]))
    file = pq.ParquetFile(directory.path / "rows" / "step-000001.parquet")
    assert file.num_row_groups == 1
    assert file.read().drop_columns("step") == whole.drop_columns("step")
    assert directory.read_rows().to_table()["step"].to_pylist() == [1] * 5


def test_a_run_without_rows_reads_as_none(directory):
    assert directory.read_rows().to_table().num_rows == 0
    assert directory.read_metrics() == []


def test_rows_that_are_not_text_are_kept(directory):
    directory.write_rows(1, schema.to_table(rows(0, "a\ud800\x00b")))
    assert directory.read_rows().to_table(["y_o.text"])["y_o.text"].to_pylist() == ["a?\x00b"]


def save(directory: RunDirectory, steps: int, **metrics: float) -> None:
    directory.commit_checkpoint(directory.begin_checkpoint(steps, {"metrics": metrics}))


def saved(directory: RunDirectory) -> list[int]:
    return [steps for steps, _ in directory.checkpoints()]


def test_a_checkpoint_counts_only_when_it_is_whole(directory):
    assert directory.checkpoints() == [] and directory.resume_point() is None
    save(directory, 2)
    directory.begin_checkpoint(3, {})  # and a killed process never commits it
    assert saved(directory) == [2]
    directory.rewind(2)
    assert [p.name for p in (directory.path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_checkpoint_that_is_begun_again_has_a_folder_of_its_own_and_the_other_is_never_one(directory):
    """A rank that was cut off from the run may still write into the first one."""
    first, second = (directory.begin_checkpoint(3, {"metrics": {}}) for _ in range(2))
    (first / "late").touch()
    assert [file.name for file in directory.commit_checkpoint(second).iterdir()] == ["state.json"]
    directory.delete_unfinished()
    assert [p.name for p in (directory.path / "checkpoints").iterdir()] == ["step-000003"]


def test_checkpoints_are_in_the_order_of_their_numbers_not_of_their_names(directory):
    for steps in (1_000_000, 999_999):
        save(directory, steps)
    assert saved(directory) == [999_999, 1_000_000]


def test_the_newest_checkpoints_are_kept(directory):
    for steps in (1, 2, 3, 4):
        save(directory, steps)
        directory.keep_checkpoints(last=2)
    assert saved(directory) == [3, 4]
    assert len(list((directory.path / "checkpoints").iterdir())) == 2  # nothing half deleted is left


def test_a_checkpoint_that_somebody_reads_is_deleted_another_time(directory):
    save(directory, 1)
    with reading(directory.checkpoints()[0][1]), reading(directory.checkpoints()[0][1]):
        for steps in (2, 3):
            save(directory, steps)
            directory.keep_checkpoints(last=1)
        assert saved(directory) == [1, 3]
    directory.keep_checkpoints(last=1)
    assert saved(directory) == [3]


def test_who_begins_to_read_while_the_run_looks_whether_somebody_reads_has_the_checkpoint_still(directory, monkeypatch):
    save(directory, 1)
    looks = os.open(directory.checkpoints()[0][1] / "state.json", os.O_RDWR)
    fcntl.flock(looks, fcntl.LOCK_EX)
    monkeypatch.setattr("trd_ray.record.claim.time.sleep", lambda _: os.close(looks))
    with reading(directory.checkpoints()[0][1]):
        assert is_read(directory.checkpoints()[0][1])


@pytest.mark.parametrize(("best_is", "kept"), [("max", [2, 5]), ("min", [3, 5])])
def test_the_best_checkpoint_by_a_metric_is_kept_too(directory, best_is, kept):
    """The fourth was not evaluated, so it is not compared."""
    for steps, value in ((1, 0.2), (2, 0.9), (3, 0.1), (4, None), (5, 0.5)):
        save(directory, steps, **({} if value is None else {"evaluation/avg": value}))
        directory.keep_checkpoints(last=1, best="evaluation/avg", best_is=best_is)
    assert saved(directory) == kept


def test_rewinding_forgets_exactly_the_steps_after_the_checkpoint(directory):
    lines = [json.dumps({"step": step, "loss": step}) + "\n" for step in range(1, 5)]
    (directory.path / "metrics.jsonl").write_text("".join(lines) + '{"step": 5, "lo')  # a crash in the middle of a line
    for step in range(1, 6):
        directory.write_rows(step, schema.to_table(rows(step)))
    for steps in (2, 4):
        save(directory, steps)
    for name, step in (("base", 0), ("step-000002", 2), ("step-000004", 4)):
        made = score(rows(0), name=name, step=step, version=step, resamples=100, seed=0)
        directory.write_evaluation(made, rows(0))
    directory.rewind(2)
    assert [m["step"] for m in directory.read_metrics()] == [1, 2]
    assert directory.read_rows().to_table()["step"].to_pylist() == [1, 2]
    assert saved(directory) == [2]
    assert [s.name for s in directory.read_evaluations()] == ["base", "step-000002"]
    assert len(list((directory.path / "evaluation").iterdir())) == 4


def test_an_evaluation_comes_back_with_its_rows(directory):
    for name, step in (("trained", 4), ("base", 0)):
        made = score(rows(0), name=name, step=step, version=step, resamples=100, seed=0)
        directory.write_evaluation(made, rows(0))
    assert [s.name for s in directory.read_evaluations()] == ["base", "trained"]
    assert pq.read_table(directory.path / "evaluation" / "base.parquet").num_rows == 1


# Nothing that was recorded is lost, and what is damaged is named


def recorded(directory: RunDirectory, steps: int) -> None:
    lines = [json.dumps({"step": step, "loss": step}) + "\n" for step in range(1, steps + 1)]
    (directory.path / "metrics.jsonl").write_text("".join(lines))
    for step in range(1, steps + 1):
        directory.write_rows(step, schema.to_table(rows(step, f"step {step}")))


def test_what_is_rewound_is_moved_aside_whole_each_time(directory):
    recorded(directory, 4)
    save(directory, 2)
    save(directory, 4)
    made = score(rows(0), name="trained", step=4, version=4, resamples=100, seed=0)
    directory.write_evaluation(made, rows(0))
    assert directory.rewind(2) == 2
    aside = directory.path / "rewound" / "1"
    assert [json.loads(line)["step"] for line in (aside / "metrics.jsonl").read_text().splitlines()] == [3, 4]
    [kept] = pq.read_table(aside / "rows" / "step-000004.parquet")["y_o"].to_pylist()
    assert kept["text"] == "step 4" and (aside / "checkpoints" / "step-000004" / "state.json").is_file()
    assert {f.name for f in (aside / "evaluation").iterdir()} == {"trained.json", "trained.parquet"}
    recorded(directory, 3)
    assert directory.rewind(2) == 1 and (directory.path / "rewound" / "2" / "rows" / "step-000003.parquet").is_file()
    assert directory.rewind(2) == 0 and len(list((directory.path / "rewound").iterdir())) == 2


def damage(directory: RunDirectory, name: str, content: str) -> None:
    (directory.path / name).write_text(content)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("recipe.yaml", "name: r\nsampler: {n: 1", ["recipe.yaml", "not valid YAML", "put it back"]),
        ("recipe.yaml", "- a list", ["recipe.yaml", "mapping", "put it back"]),
        ("environment.json", '[{"started": ', ["environment.json", "damaged", "delete it"]),
        ("environment.json", "{}", ["environment.json", "dict", "delete it"]),
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_changed(directory, name, content, words):
    directory.release()
    damage(directory, name, content)
    with pytest.raises(UserError) as refused:
        RunDirectory.create(directory.path, RECIPE, resume=True)
    assert all(word in str(refused.value) for word in words), refused.value
    assert (directory.path / name).read_text() == content
    with pytest.raises(UserError, match="damaged|cannot be read"):  # and the claim was given up
        RunDirectory.create(directory.path, RECIPE, resume=True)


def test_a_damaged_line_or_score_is_named_with_its_place(directory):
    damage(directory, "metrics.jsonl", '{"step": 0}\n{"step": \n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"):
        directory.read_metrics()
    for content in ("", "{}", "[1]", '{"name": "base"'):
        damage(directory, "evaluation/base.json", content)
        with pytest.raises(UserError, match="base.json.*delete it and base.parquet"):
            directory.read_evaluations()


def test_a_disk_that_takes_no_more_is_a_sentence(tmp_path):
    """A limit on the size of files stands in for a full disk: the same call fails, with another number."""
    path = tmp_path / "r"
    RunDirectory.create(path, RECIPE).release()
    code = (
        "import resource, signal, sys; from trd_ray.config import from_tree; from trd_ray.errors import UserError;"
        "from trd_ray.record.directory import RunDirectory; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "try: RunDirectory.create(sys.argv[1], from_tree({'name': 'r', 'steps': 4}), resume=True)\n"
        "except UserError as e: print(e)"
    )
    before = (path / "recipe.yaml").read_text()
    for limit, words in ((0, "cannot be claimed (File too large)"), (200, "cannot be written to (File too large)")):
        done = subprocess.run([sys.executable, "-c", code, str(path), str(limit)], capture_output=True, text=True)
        assert words in done.stdout and "set run_dir" in done.stdout, done
    assert (path / "recipe.yaml").read_text() == before


def test_a_run_directory_in_ray_s_copy_of_the_code_is_refused(tmp_path):
    """The copy that `ray job submit --working-dir .` makes goes with its session."""
    place = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1c" / "runs" / "mine"
    with pytest.raises(UserError, match="temporary copy.*run_dir=/shared/runs/mine"):
        RunDirectory.create(place, RECIPE)
    assert not list(tmp_path.iterdir())


WRITERS = {
    "text": lambda place: write_atomically(place, "new" * 10_000),
    "rows": lambda place: write_parquet(place, schema.to_table(rows(0))),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, kind):
    place = tmp_path / "kept"
    place.write_text("old")
    (tmp_path / ".kept.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        WRITERS[kind](place)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and place.read_text() == "old"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch, kind):
    done = record_fsync_and_rename(monkeypatch)
    WRITERS[kind](tmp_path / "kept")
    assert done == ["fsync .kept.tmp", "rename .kept.tmp", f"fsync {tmp_path.name}"]


def test_a_step_is_on_the_disk_when_it_is_recorded(tmp_path, monkeypatch):
    with Metrics(tmp_path, 2) as metrics:
        done = record_fsync_and_rename(monkeypatch)
        metrics.log(1, {"loss": 1.0})
        assert done == ["fsync metrics.jsonl"]


def record_fsync_and_rename(monkeypatch) -> list[str]:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        done.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def recorded_replace(source, target):
        done.append(f"rename {os.path.basename(source)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    return done


def test_a_run_of_the_version_that_counted_from_0_is_not_gone_on_with(directory):
    directory.release()
    directory.write_rows(0, schema.to_table(rows(0)))
    with pytest.raises(UserError, match="counted steps from 0.*set run_dir"):
        RunDirectory.create(directory.path, RECIPE, resume=True)
