"""What is seen of a run from outside: alive or dead by lock and heartbeat, and answers to who asks."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.record.claim import claim
from trd_ray.record.directory import RunDirectory
from trd_ray.session import asking, seen
from trd_ray.session.asking import ask
from trd_ray.session.door import FOLDER, Door
from trd_ray.session.logs import log_named, logs_of, more, tail
from trd_ray.session.seen import SILENT_S, look_at, runs_below, state_of


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A directory that this process holds, as a run does."""
    directory = RunDirectory.create(tmp_path / "mine", from_tree({"name": "mine"}))
    yield directory
    directory.release()


def looking(door: Door) -> threading.Event:
    """Let a run look at its door until the event is set."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            door.look(now=True)

    threading.Thread(target=look, daemon=True).start()
    return done


@pytest.mark.parametrize(
    "status, held, state",
    [
        ({"written": 1000.0}, True, "running"),
        ({"written": 1000.0, "paused": True}, True, "paused"),
        ({"written": 1000.0 - SILENT_S - 1}, True, "silent"),
        ({"written": 1000.0, "host": os.uname().nodename}, False, "dead"),
        ({"written": 1000.0, "host": "elsewhere"}, False, "unknown"),
        ({"written": 1.0, "host": "elsewhere"}, False, "dead"),
        ({"written": 1.0, "ended": {"how": "done"}}, False, "done"),
        ({"written": 1.0, "ended": {"how": "failed"}}, False, "failed"),
        ({}, True, "running"),
        ({}, False, "ended"),
    ],
)
def test_alive_or_dead_is_told_by_the_lock_and_the_heartbeat(status, held, state):
    assert state_of(status, held, now=1000.0) == state


def test_a_run_is_seen_while_it_lives_and_after_its_process_was_killed(tmp_path):
    """By a process of its own, since the kernel is what drops the lock."""
    source = """
import sys, time
from pathlib import Path
from trd_ray.config import from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.session.door import Door
directory = RunDirectory.create(Path(sys.argv[1]), from_tree({"name": "killed"}))
with Door(directory.path, "train") as door:
    door.look(now=True)
    print("open", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        view = look_at(tmp_path / "killed")
        assert (view["state"], view["name"]) == ("running", "killed")
        assert f"process {process.pid} on" in view["holder"]
    finally:
        process.kill()
        process.wait()
    view = look_at(tmp_path / "killed")
    assert (view["state"], view["holder"], view["name"]) == ("dead", None, "killed")
    with pytest.raises(UserError, match="does not run, it is dead: there is nobody to ask"):
        ask(tmp_path / "killed", "stop", {}, "me", timeout_s=60)


def test_what_an_earlier_start_showed_is_not_taken_for_what_a_run_that_starts_again_does(tmp_path):
    lock = claim(tmp_path)
    earlier = {"pid": 1, "host": "here", "written": 1.0, "ended": {"how": "failed", "said": "a pool died", "when": 1.0}}
    (tmp_path / "status.json").write_text(json.dumps(earlier))
    assert (look_at(tmp_path)["state"], look_at(tmp_path)["status"]) == ("running", {})
    (tmp_path / "status.json").write_text(json.dumps(earlier | {"pid": os.getpid()}))
    assert look_at(tmp_path)["state"] == "silent"
    os.close(lock)
    assert look_at(tmp_path)["state"] == "failed"


def test_who_only_looks_does_not_keep_a_run_from_starting(tmp_path):
    done = threading.Event()
    tmp_path.joinpath(".lock").touch()

    def look() -> None:
        while not done.is_set():
            seen.is_held(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            os.close(claim(tmp_path))
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_what_is_asked_comes_back_and_nothing_stays_at_the_door(run):
    with Door(run.path, "train") as door:
        door.on("pause", lambda arguments: f"resting {arguments['for']}")
        done = looking(door)
        assert ask(run.path, "pause", {"for": "good"}, "me", timeout_s=120) == "resting good"
        with pytest.raises(UserError, match="mine answers: this run does not know dance: it can be asked to pause"):
            ask(run.path, "dance", {}, "me", timeout_s=120)
        done.set()
    assert list((run.path / FOLDER).iterdir()) == []


def test_a_run_that_does_not_look_is_given_up_on_and_the_request_is_taken_back(run):
    with Door(run.path, "train"):
        with pytest.raises(UserError, match="has not answered within 0 s, and last looked at its door .* s ago"):
            ask(run.path, "pause", {}, "me", timeout_s=0.2)
        assert list((run.path / FOLDER).iterdir()) == []


def test_a_run_that_hangs_is_stopped_at_once_by_two_signals_to_its_process(tmp_path):
    source = """
import sys, time
from pathlib import Path
from trd_ray.config import from_tree
from trd_ray.record.directory import RunDirectory
from trd_ray.session.door import Door
from trd_ray.session.stop import StopSignals
directory = RunDirectory.create(Path(sys.argv[1]), from_tree({"name": "hangs"}))
with StopSignals() as stop, Door(directory.path, "train"):
    print("open", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("at once", stop.hurried, flush=True)
"""
    place = tmp_path / "hangs"
    process = subprocess.Popen([sys.executable, "-c", source, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="has not answered"):
            ask(place, "stop", {"now": False}, "me", timeout_s=0.2)
        assert "sent SIGTERM twice" in ask(place, "stop", {"now": True}, "me", timeout_s=0.2)
        assert process.stdout.readline() == "at once True\n"
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()


def test_a_run_that_ends_while_it_is_asked_is_told_of(run, monkeypatch):
    monkeypatch.setattr(asking, "GONE_S", 0.0)
    with Door(run.path, "train"):
        threading.Timer(0.2, run.release).start()
        with pytest.raises(UserError, match="it is dead"):
            ask(run.path, "pause", {}, "me", timeout_s=120)


def test_a_run_that_answers_and_ends_has_answered(run, monkeypatch):
    monkeypatch.setattr(asking, "GONE_S", 0.0)
    require_life, lives = asking._require_life, iter([True])

    def ends(directory: Path) -> None:
        if not next(lives, False):
            door.look(now=True)
            run.release()
        require_life(directory)

    monkeypatch.setattr(asking, "_require_life", ends)
    with Door(run.path, "train") as door:
        door.on("stop", lambda _: "it stops")
        assert ask(run.path, "stop", {}, "me", timeout_s=120) == "it stops"


def test_an_answer_that_this_user_may_not_read_is_a_sentence(run, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\): ask as the user who started"):
        asking._answered(run.path, run.path / "a.answer.json")


def test_a_directory_that_cannot_be_written_says_so(run, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with Door(run.path, "train"):
        monkeypatch.setattr(asking, "replace_text", refuse)
        with pytest.raises(UserError, match=r"cannot be asked \(Permission denied\): whoever may write there"):
            ask(run.path, "pause", {}, "me")


def test_everything_is_read_also_from_a_directory_that_a_crash_left_damaged(run):
    (run.path / "status.json").write_text('{"writ')
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (run.path / "checkpoints" / "step-000002").mkdir()
    (run.path / "checkpoints" / ".step-000004.1.tmp").mkdir()
    run.event("warning", said="few problems")
    run.event("checkpoint", said="checkpoint 2 is written")
    view = look_at(run.path)
    assert view["metrics"] == {"step": 2} and view["checkpoints"] == [2] and view["status"] == {}
    assert view["alarm"]["said"] == "few problems" and len(view["events"]) == 2
    assert json.loads(json.dumps(view)) == view


def test_runs_are_found_below_a_folder_also_in_comparisons_and_not_inside_runs(tmp_path):
    for place in ("a", "deep/er/b", "compared/opd/trd", "a/rewound/1/x"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "recipe.yaml").touch()
    (tmp_path / "compared" / "comparison.yaml").touch()
    for number, place in enumerate(("compared", "a", "compared/opd/trd", "deep/er/b")):
        os.utime(tmp_path / place, (number, number))
    found = [str(place.relative_to(tmp_path)) for place in runs_below(tmp_path)]
    assert found == ["compared", "a", "compared/opd/trd", "deep/er/b"]
    assert list(runs_below(tmp_path / "nowhere")) == []


def test_logs_have_short_names_and_are_read_from_their_end(run):
    logs = run.path / "logs"
    (logs / "sampler-0.log").write_text("".join(f"line {number}\n" for number in range(100)))
    for when in ("20260101-000000", "20260102-000000"):
        (logs / f"failure-{when}.txt").write_text(when)
    (run.path / "train.log").write_text("step 1\n")
    assert list(logs_of(run.path)) == ["train", "sampler-0", "failure"]
    assert log_named(run.path, "failure").read_text() == "20260102-000000"
    text, end = tail(logs / "sampler-0.log", 2)
    assert text == "line 98\nline 99\n"
    with open(logs / "sampler-0.log", "a") as file:
        file.write("new\n")
    assert more(logs / "sampler-0.log", end)[0] == "new\n"
    (logs / "sampler-0.log").write_text("anew\n")
    assert more(logs / "sampler-0.log", end)[0] == "anew\n"
    with pytest.raises(UserError, match=r"has no log 'sampler-1' \(did you mean sampler-0\?\)"):
        log_named(run.path, "sampler-1")


def test_a_long_log_is_not_read_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr("trd_ray.session.logs.LONGEST_TAIL", 10)
    (tmp_path / "x.log").write_text("0123456789\n" * 3)
    assert tail(tmp_path / "x.log", 5) == ("123456789\n", 33)


def test_a_heartbeat_is_no_older_than_the_last_look(run):
    with Door(run.path, "train") as door:
        before = time.time()
        door.look(now=True)
        assert look_at(Path(run.path))["status"]["written"] >= before
