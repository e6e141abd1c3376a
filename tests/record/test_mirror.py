"""A mirror holds what a run has committed, and a run goes on from it where its directory is not."""

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.config import from_tree, load
from trd_ray.distill import checksums
from trd_ray.errors import RunFailed, UserError
from trd_ray.record.beacon import Beacon, require_dark
from trd_ray.record.claim import claim
from trd_ray.record.directory import RunDirectory
from trd_ray.record.elsewhere import Elsewhere
from trd_ray.record.mirror import Mirror
from trd_ray.record.mirrored import MANIFEST, Manifest, Mirrored
from trd_ray.rows import to_table
from trd_ray.train.plan import mirror_of, plan, to_resume

PATIENCE_S = 200  # for a thread on a busy machine


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Run:
    """What a run does to its directory."""

    def __init__(self, place: Path, mirror: Path | str, **checkpoint):
        tree = {"name": "r", "run_dir": str(place), "steps": 100}
        self.recipe = from_tree(tree | {"checkpoint": {"mirror": str(mirror)} | checkpoint})
        self.directory = RunDirectory.create(place, self.recipe, resume=(place / "recipe.yaml").exists())
        self.mirror = Mirror(self.directory, self.elsewhere(), self.recipe, pauses_s=(0.01,))
        self.done = 0

    def elsewhere(self) -> Elsewhere:
        assert self.recipe.checkpoint.mirror
        return Elsewhere.at(self.recipe.checkpoint.mirror, "r")

    def steps(self, upto: int, text: str = "a", more: dict | None = None) -> None:
        for step in range(self.done + 1, upto + 1):
            plain = {"problem_id": "p", "problem": "?", "answer": "5", "reference": ""}
            order = {"row": step, "step": step, "epoch": 0, "sample_index": 0, "seed": 0}
            row = plain | order | {"y_o": {"ids": [1], "text": text, "passed": True, "finish": "stop"}}
            self.directory.write_rows(step, to_table([row]))
            with open(self.directory.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step} | ({"lr": 1.0} if more is None else more)) + "\n")
        self.done = upto

    def checkpoint(self, steps: int, avg: float = 0.0, content: bytes = b"weights") -> Path:
        self.steps(steps)
        folder = self.directory.begin_checkpoint(steps, {"metrics": {"avg": avg}})
        (folder / "learner").mkdir()
        (folder / "learner" / "__0_0.distcp").write_bytes(content + str(steps).encode())
        checksums.write(folder, checksums.of(folder, [folder / "learner" / "__0_0.distcp"]))
        place = self.directory.commit_checkpoint(folder)
        keep = self.recipe.checkpoint
        self.directory.keep_checkpoints(keep.keep_last, "avg" if keep.best else None, keep.best_is)
        return place

    def end(self) -> str | None:
        try:
            return self.mirror.close()
        finally:
            self.directory.release()


def manifest(run: Run) -> Manifest:
    found = Manifest.read(run.elsewhere())
    assert found is not None
    return found


def files(place: Path, *but: str) -> dict[str, bytes]:
    found = (p for p in place.rglob("*") if p.is_file() and p.name not in (".lock", MANIFEST, *but))
    return {str(p.relative_to(place)): p.read_bytes() for p in found}


def test_what_is_committed_is_in_the_mirror_and_what_came_after_it_is_not(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    until(lambda: run.mirror.facts()["steps"] == 2)
    run.steps(3)
    assert run.end() is None
    there = tmp_path / "there" / "r"
    assert [p.name for p in sorted((there / "rows").iterdir())] == ["step-000001.parquet", "step-000002.parquet"]
    assert [json.loads(line)["step"] for line in (there / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    here = files(run.directory.path, "metrics.jsonl")
    assert files(there, "metrics.jsonl").items() == {k: v for k, v in here.items() if "000003" not in k}.items()


def test_a_fresh_machine_has_the_run_as_it_was_and_goes_on_with_it(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    run.checkpoint(4)
    assert run.end() is None
    elsewhere = tmp_path / "fresh" / "r"
    recipe = run.recipe.model_copy(update={"run_dir": str(elsewhere)})
    mirrored = mirror_of(recipe, "auto")
    assert mirrored and mirrored.is_ahead and to_resume(recipe, "auto", mirrored) == recipe
    mirrored.restore(say=print)
    assert "going on from step 4" in capsys.readouterr().out
    gone = {k for k in files(run.directory.path) if "step-000002/" in k}  # only the newest checkpoint is needed
    assert gone and files(elsewhere) == {k: v for k, v in files(run.directory.path).items() if k not in gone}
    again = Run(elsewhere, tmp_path / "there")
    assert again.directory.rewind(4) == 0
    again.done = 4
    again.checkpoint(6)
    assert again.end() is None
    assert sorted(manifest(again).checkpoints) == ["step-000004", "step-000006"]
    assert not (tmp_path / "there" / "r" / "checkpoints" / "step-000002").exists()


def test_the_mirror_keeps_the_checkpoints_that_the_run_keeps_and_the_best_is_restored(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there", keep_last=1, best="avg")
    for steps, avg in ((2, 0.1), (4, 0.9), (6, 0.3), (8, 0.2)):
        run.checkpoint(steps, avg)
        until(lambda steps=steps: run.mirror.facts()["steps"] == steps)
    assert run.end() is None
    kept = ["step-000004", "step-000008"]
    assert sorted(manifest(run).checkpoints) == kept
    assert sorted(p.name for p in (tmp_path / "there" / "r" / "checkpoints").iterdir()) == kept
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = Mirrored.of(recipe)
    assert mirrored
    mirrored.restore(say=print)
    assert [f.name for _, f in RunDirectory(recipe.directory).checkpoints()] == kept


def test_a_mirror_that_is_away_stops_nobody_is_told_of_once_and_catches_up(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    until(lambda: run.mirror.facts()["steps"] == 2)
    there, away = tmp_path / "there", tmp_path / "away"
    there.rename(away)
    there.write_text("no folder")
    run.checkpoint(4)
    until(lambda: run.mirror.facts()["problem"])
    for steps in (6, 8, 10):
        run.checkpoint(steps)
    [said] = run.mirror.news()
    assert f"mirror: {there}/r takes no copies" in said and "the run goes on" in said
    there.unlink()
    away.rename(there)
    until(lambda: run.mirror.facts()["problem"] is None)
    assert run.mirror.news() == [f"mirror: {there}/r has caught up, and holds 10 steps"]
    assert sorted(manifest(run).checkpoints) == ["step-000008", "step-000010"] and run.end() is None


def test_a_run_that_ends_while_its_mirror_is_away_says_what_is_missing_and_the_same_command_copies_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("trd_ray.record.mirror.STUCK_S", 0.5)
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    until(lambda: run.mirror.facts()["steps"] == 2)
    (tmp_path / "there").rename(tmp_path / "away")
    (tmp_path / "there").write_text("no folder")
    run.checkpoint(4)
    said = run.end()
    assert said and "lacks what came after step 2 (" in said and "the same command copies it" in said
    (tmp_path / "there").unlink()
    (tmp_path / "away").rename(tmp_path / "there")
    monkeypatch.setattr("trd_ray.record.mirror.STUCK_S", PATIENCE_S)
    again = Run(tmp_path / "here" / "r", tmp_path / "there")
    again.mirror.committed(4)
    assert again.end() is None and manifest(again).steps == 4


def test_a_checkpoint_that_is_being_copied_stays_until_it_is(tmp_path, monkeypatch):
    run = Run(tmp_path / "here" / "r", tmp_path / "there", keep_last=1)
    begun, go_on = threading.Event(), threading.Event()
    put = Elsewhere.put

    def slow(self, file, name, on_bytes):
        if "step-000002/" in name:
            begun.set()
            assert go_on.wait(PATIENCE_S)
        return put(self, file, name, on_bytes)

    monkeypatch.setattr(Elsewhere, "put", slow)
    first = run.checkpoint(2)
    assert begun.wait(PATIENCE_S)
    run.checkpoint(4)
    assert first.exists()
    go_on.set()
    until(lambda: run.mirror.facts()["steps"] == 4)
    run.checkpoint(6)
    assert not first.exists() and run.end() is None
    assert list(manifest(run).checkpoints) == ["step-000006"]


def test_a_corpus_is_in_the_mirror_with_every_step_and_a_fresh_machine_makes_the_others(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    for step in (1, 2, 3):
        run.steps(step, more={})
        run.directory.on_commit(step)
    run.steps(4, more={})  # it was being recorded when the machine was lost
    assert run.end() is None
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = mirror_of(recipe, "auto")
    assert mirrored and mirrored.is_ahead
    mirrored.restore(say=print)
    directory = RunDirectory(recipe.directory)
    assert [line["step"] for line in directory.read_metrics()] == [1, 2, 3] == [n for n, _ in directory.row_files()]
    again = mirror_of(recipe, "auto")
    assert again and not again.is_ahead


def test_a_step_of_a_corpus_whose_rows_did_not_come_over_in_time_is_made_again(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.steps(2, more={})
    run.directory.on_commit(2)
    assert run.end() is None
    with open(tmp_path / "there" / "r" / "metrics.jsonl", "a") as file:  # the list was about to be written
        file.write('{"step": 3}\n')
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = mirror_of(recipe, "auto")
    assert mirrored
    mirrored.restore(say=print)
    directory = RunDirectory(recipe.directory)
    assert [line["step"] for line in directory.read_metrics()] == [1, 2] == [n for n, _ in directory.row_files()]


def test_a_mirror_that_would_be_the_run_directory_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for mirror in (tmp_path, f"file://{tmp_path}", tmp_path / "link"):
        recipe = from_tree({"name": "r", "run_dir": str(tmp_path / "r"), "checkpoint": {"mirror": str(mirror)}})
        with pytest.raises(UserError, match="the mirror would be the run directory itself: set checkpoint.mirror to"):
            mirror_of(recipe, "auto")


def test_a_copy_that_was_cut_off_is_not_in_the_list_and_does_not_count(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    assert run.end() is None
    half = tmp_path / "there" / "r" / "checkpoints" / "step-000004" / "state.json"
    half.parent.mkdir()
    half.write_text("{")
    (tmp_path / "there" / "r" / "rows" / "step-000004.parquet").write_bytes(b"PAR")
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = Mirrored.of(recipe)
    assert mirrored
    mirrored.restore(say=print)
    directory = RunDirectory(recipe.directory)
    assert [n for n, _ in directory.checkpoints()] == [2] and [n for n, _ in directory.row_files()] == [1, 2]


def test_files_that_changed_in_the_mirror_are_refused_and_nothing_is_made_of_them(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    assert run.end() is None
    (tmp_path / "there" / "r" / "checkpoints" / "step-000002" / "learner" / "__0_0.distcp").write_bytes(b"weightX2")
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = Mirrored.of(recipe)
    assert mirrored
    with pytest.raises(UserError, match="step-000002/learner/__0_0.distcp there is not what was copied"):
        mirrored.restore(say=print)
    assert list((tmp_path / "fresh").iterdir()) == []


def test_what_a_restore_that_was_killed_left_is_deleted_by_the_next_but_not_what_somebody_else_is_at(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    assert run.end() is None
    fresh = tmp_path / "fresh"
    killed, alive, foreign, others = (fresh / f".r.{pid}.tmp" for pid in (1, 2, 3, 4))
    for folder in (killed, alive, foreign, others):
        (folder / "rows").mkdir(parents=True)
    os.close(claim(killed))
    lock = claim(alive)
    (foreign / ".lock").write_text("process 7 on another-machine since 2026-11-28 10:00:00")
    mirrored = Mirrored.of(run.recipe.model_copy(update={"run_dir": str(fresh / "r")}))
    assert mirrored
    mirrored.restore(say=print)
    os.close(lock)
    assert sorted(p.name for p in fresh.iterdir()) == [alive.name, foreign.name, others.name, "r"]
    RunDirectory.create(fresh / "r", run.recipe, resume=True).release()


def test_an_older_run_directory_is_kept_aside_when_the_run_has_gone_on_elsewhere(tmp_path):
    first = Run(tmp_path / "here" / "r", tmp_path / "there")
    first.checkpoint(2)
    assert first.end() is None
    old = files(first.directory.path)
    second = Run(tmp_path / "other" / "r", tmp_path / "there")
    second.steps(2)
    second.checkpoint(4, content=b"others")
    assert second.end() is None
    mirrored = Mirrored.of(first.recipe)
    assert mirrored and mirrored.is_ahead
    mirrored.restore(say=print)
    assert files(tmp_path / "here" / "r.behind-1") == old
    assert RunDirectory(tmp_path / "here" / "r").checkpoints()[-1][0] == 4


def overtaken(tmp_path) -> Run:
    """A run that begins again after another machine went on from its mirror, with a step 2 that differs."""
    first = Run(tmp_path / "here" / "r", tmp_path / "there")
    first.checkpoint(2)
    assert first.end() is None
    second = Run(tmp_path / "other" / "r", tmp_path / "there")
    second.steps(1, "a")
    second.steps(4, "b")  # step 2 differs
    second.checkpoint(4)
    assert second.end() is None
    return Run(tmp_path / "here" / "r", tmp_path / "there")


def test_what_another_machine_made_is_copied_again_by_a_run_that_is_ahead_of_it(tmp_path):
    first = overtaken(tmp_path)
    first.done = 2
    first.checkpoint(6)
    assert first.end() is None
    there = {k: v for k, v in files(tmp_path / "there" / "r").items() if k.startswith("rows/")}
    assert there == {k: v for k, v in files(first.directory.path).items() if k.startswith("rows/")}
    assert sorted(manifest(first).checkpoints) == ["step-000002", "step-000006"]


def test_what_another_machine_made_is_off_the_list_before_it_is_written_over(tmp_path, monkeypatch):
    first = overtaken(tmp_path)

    def cut_off(*_: Any) -> Any:
        raise OSError("cut off")

    with monkeypatch.context() as cut:
        cut.setattr(Elsewhere, "put", cut_off)
        with pytest.raises(OSError, match="cut off"):
            first.mirror._copy()
    listed = manifest(first)
    assert (listed.steps, listed.checkpoints, list(listed.files)) == (1, {}, ["rows/step-000001.parquet"])
    first.done = 2
    first.checkpoint(6)
    assert first.end() is None and manifest(first).steps == 6


def test_the_same_command_goes_on_to_copy_what_the_mirror_of_a_run_that_is_done_lacks(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    inputs: Any = SimpleNamespace(job="refine", total_steps=1)
    with pytest.raises(UserError, match="raise steps to go on"):
        plan(inputs, directory, True, "required")
    assert plan(inputs, directory, True, "required", has_mirror=True).finished


def test_a_new_run_does_not_take_the_place_of_one_that_the_mirror_holds(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    assert run.end() is None
    fresh = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    with pytest.raises(UserError, match="already holds a run, with 2 steps: continue it with --resume"):
        mirror_of(fresh, "no")
    other = fresh.model_copy(update={"seed": 7})
    with pytest.raises(UserError, match=r"there/r began with another recipe: put back seed=0 \(now 7\)"):
        to_resume(other, "auto", mirror_of(other, "auto"))
    assert not (tmp_path / "fresh").exists()


def test_a_run_does_not_write_over_the_mirror_of_another_of_its_name(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.checkpoint(2)
    assert run.end() is None
    other = run.recipe.model_copy(update={"run_dir": str(tmp_path / "other" / "r"), "seed": 7})
    RunDirectory.create(other.directory, other).release()
    with pytest.raises(UserError, match=r"there/r began with another recipe: put back seed=0 \(now 7\)"):
        mirror_of(other, "auto")


def test_a_second_start_on_another_machine_is_refused_while_the_first_lives(tmp_path, capsys):
    place = Elsewhere.at(str(tmp_path), "r")
    here, there = tmp_path / "a" / "r", tmp_path / "b" / "r"
    beacon = Beacon(place, here, beat_s=0.05)
    beacon.light()
    require_dark(place, here, say=print)  # the lock of the directory tells that
    with pytest.raises(UserError, match="under way, and process .* has it: wait for it, stop it"):
        require_dark(place, there, say=print, patience_s=PATIENCE_S)
    beacon.put_out()
    assert place.read("alive.json") is None
    require_dark(place, there, say=print)


def test_a_light_that_no_longer_changes_is_a_dead_run_s(tmp_path, capsys):
    place = Elsewhere.at(str(tmp_path), "r")
    Beacon(place, tmp_path / "a", beat_s=1000).light()
    require_dark(place, tmp_path / "b", say=print, patience_s=0.01, sleep=lambda _: time.sleep(0.02))
    assert "has not put out its light" in capsys.readouterr().out


def test_a_run_whose_mirror_another_start_has_taken_over_ends_and_leaves_it_alone(tmp_path):
    run = Run(tmp_path / "here" / "r", tmp_path / "there")
    run.mirror.beacon = beacon = Beacon(run.elsewhere(), tmp_path / "here" / "r", beat_s=0.02)
    beacon.light()
    other = Beacon(run.elsewhere(), tmp_path / "elsewhere" / "r", beat_s=1000)
    other.light()
    until(lambda: beacon.taken_by)
    with pytest.raises(RunFailed, match="the run goes on elsewhere: process .* has taken over its mirror"):
        run.mirror.news()
    run.checkpoint(2)
    run.mirror._thread.join(PATIENCE_S)
    assert Manifest.read(run.elsewhere()) is None and run.elsewhere().read("alive.json")
    run.end()


class Store:
    """An S3 server of this process, which can be away for a while and then holds what it held."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", self.port)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self) -> None:
        self.server.stop()

    @property
    def url(self) -> str:
        return f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{self.port}&allow_bucket_creation=true"


@pytest.fixture
def store(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = Store()
    Elsewhere.at(found.url, "r").system.create_dir("bucket")
    yield found
    found.stop()


def test_a_run_goes_on_from_s3_on_a_fresh_machine(tmp_path, store):
    run = Run(tmp_path / "here" / "r", store.url)
    run.checkpoint(2, content=bytes(range(256)) * 40_000)  # 10 MB: several parts
    run.checkpoint(4)
    assert run.end() is None
    recipe = run.recipe.model_copy(update={"run_dir": str(tmp_path / "fresh" / "r")})
    mirrored = mirror_of(recipe, "auto")
    assert mirrored and mirrored.place.url == "s3://bucket/runs/r"
    mirrored.restore(say=print)
    gone = {k for k in files(run.directory.path) if "step-000002/" in k}
    assert files(recipe.directory) == {k: v for k, v in files(run.directory.path).items() if k not in gone}
    again = Run(recipe.directory, store.url)
    again.done = 4
    again.checkpoint(6)
    assert again.end() is None and sorted(manifest(again).checkpoints) == ["step-000004", "step-000006"]
    assert not [name for name in again.elsewhere().listing("checkpoints") if name.startswith("step-000002")]


def test_a_broken_connection_stops_nobody_and_what_is_missing_is_copied_when_it_is_back(tmp_path, store):
    run = Run(tmp_path / "here" / "r", store.url)
    run.checkpoint(2)
    until(lambda: run.mirror.facts()["steps"] == 2)
    store.stop()
    run.checkpoint(4)
    until(lambda: run.mirror.facts()["problem"])
    run.checkpoint(6)
    [said] = run.mirror.news()
    assert "mirror: s3://bucket/runs/r takes no copies (" in said
    store.start()
    until(lambda: run.mirror.facts()["problem"] is None)
    assert run.mirror.news() == ["mirror: s3://bucket/runs/r has caught up, and holds 6 steps"]
    assert run.end() is None and sorted(manifest(run).checkpoints) == ["step-000004", "step-000006"]


@pytest.mark.parametrize(
    ("mirror", "words"),
    [
        ("runs", "must be a place such as s3://bucket/runs"),
        ("s3://me:secret@bucket/runs", "must not hold a password"),
        ("s3://bucket\n/runs", "without control characters"),
    ],
)
def test_a_mirror_that_cannot_be_one_is_refused_with_the_recipe(mirror, words):
    with pytest.raises(UserError, match=words) as refused:
        from_tree({"checkpoint": {"mirror": mirror}})
    assert "secret" not in str(refused.value)


def test_a_mirror_that_cannot_be_reached_is_one_sentence(tmp_path):
    recipe = load("miniature_opsd", [f"run_dir={tmp_path / 'r'}", "checkpoint.mirror=nonsense://bucket/runs"])
    with pytest.raises(UserError, match="cannot be reached .*: correct it, or give this machine the network"):
        mirror_of(recipe, "auto")
