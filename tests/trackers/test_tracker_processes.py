"""A tracker is in a process of its own: nothing that it does ends a run, makes it wait for long, or outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from trd_ray.config import TrackingConfig, from_tree
from trd_ray.trackers.following import Ending, Following, facts_of
from trd_ray.trackers.kept_apart import KeptApart
from trd_ray.trackers.kept_run import KeptRun
from trd_ray.trackers.shown_rows import COLUMNS

HERE = Path(__file__).parent
REPO = HERE.parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(REPO)]))
    (tmp_path / "logs").mkdir()
    return tmp_path


def following(*names: str, deadline_s: float = 60) -> Following:
    return Following(TrackingConfig(deadline_s=deadline_s), {name: f"stub_trackers:{name}" for name in names})


def facts(done: int = 0) -> dict[str, Any]:
    return facts_of(from_tree({"name": "mine"}), "train", done, {"command": "trd train mine"})


def noted(place: Path, what: str) -> list[list[Any]]:
    file = place / "notes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line[1:] for line in lines if line[0] == what]


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(
    f: Following, place: Path, steps: range, done: int = 0, ending: Ending | None = None, waits: bool = False
) -> tuple[float, list]:
    """The steps of a run with these trackers; returns the seconds that its end waited, and what was said in all.

    With `waits` also that it waited, which depends on how busy the machine is.
    """
    with f.during(place, facts(done), lambda e: ending or Ending()):
        for step in steps:
            before = time.monotonic()
            f.step(step, {"loss": step / 4, "bad": float("nan"), "note": "x"})
            assert time.monotonic() - before < 0.2, "the loop only puts into a queue"
        ended = time.monotonic()
    waited = time.monotonic() - ended
    assert all(tracker._process is None for tracker in f.trackers)
    return waited, [(warns, text) for warns, text in f.news() if waits or not text.startswith("waiting for")]


def test_a_tracker_is_told_of_everything_in_order_and_its_run_goes_on_after_a_resume(place):
    report = place / "report.html"
    report.write_text("<p>")
    end = Ending("done", "", {"final/base/avg@1": 0.5}, "# Summary", [report, place / "absent"])
    waited, said = run(following("Notes"), place, range(1, 4), ending=end)
    assert said == [(False, "Notes: in notes.jsonl")] and waited < 30
    assert noted(place, "begin") == [["mine", 0, False, "an id", 0]]
    assert noted(place, "step") == [[step, {"loss": step / 4}] for step in (1, 2, 3)]
    assert noted(place, "end") == [["done", "", {"final/base/avg@1": 0.5}, "# Summary", ["report.html"]]]
    # The run was resumed from step 2: step 3 is done again, and no tracker can take its first point back.
    _, said = run(following("Notes"), place, range(3, 6), done=2)
    assert noted(place, "begin")[1] == ["mine", 0, True, "an id", 3]
    assert [step for step, _ in noted(place, "step")] == [1, 2, 3, 4, 5]
    assert (False, "Notes has the steps up to 3 already, and keeps what it has of them") in said


def test_a_tracker_that_comes_later_gets_the_steps_that_were_done(place):
    lines = [{"step": step, "loss": step / 4, "none": None} for step in (1, 2, 3)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(following("Notes"), place, range(3, 5), done=2)
    assert noted(place, "step") == [[step, {"loss": step / 4}] for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["Sleeps", "SleepsAtOnce"])
def test_all_steps_run_beside_a_tracker_that_sleeps_for_ever_and_the_end_waits_no_longer_than_its_deadline(place, name):
    waited, said = run(following(name, deadline_s=4), place, range(1, 3001), waits=True)
    assert 3 < waited < 12, (said, (place / "logs" / f"tracker-{name}.txt").read_text())
    warnings = [text for warns, text in said if warns]
    assert len([text for text in warnings if "1000 messages behind" in text]) == 1
    assert any("was not done in time (tracking.deadline_s)" in text for text in warnings)
    assert [text for warns, text in said if not warns and text.startswith(f"waiting for the tracker {name}, up to 1 s")]
    [dropped] = [text for text in warnings if "lacks" in text and "for which it had no room" in text]
    assert int("".join(c for c in dropped if c.isdigit())) > 500  # the pipe holds some too


def test_a_tracker_that_holds_the_lock_of_its_process_is_ended_with_all_below_it(place):
    f = following("HoldsTheLock", deadline_s=4)
    waited, said = run(f, place, range(1, 4))
    assert waited < 12 and any("was not done in time" in text for _, text in said)
    [[child, itself]] = noted(place, "child")
    wait_for(lambda: not any(psutil.pid_exists(pid) and _lives(pid) for pid in (child, itself)), 10)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_tracker_that_raises_is_said_once_and_gets_what_comes_later(place):
    _, said = run(following("Raises"), place, range(1, 6))
    [warning] = [text for warns, text in said if warns]
    why = "ConnectionError: no route to the server"
    assert warning == f"the tracker Raises failed in its step ({why}); metrics.jsonl has every number"
    assert [step for step, _ in noted(place, "step")] == [3] and len(noted(place, "end")) == 1
    assert "no route" in (place / "logs" / "tracker-Raises.txt").read_text()


def test_a_tracker_that_cannot_begin_or_ends_its_process_is_said_and_the_others_go_on(place):
    f = following("CannotBegin", "Leaves", "Notes", deadline_s=60)
    waited, said = run(f, place, range(1, 4))
    assert waited < 30
    warnings = sorted(text for warns, text in said if warns)
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "the tracker CannotBegin failed in its begin (SystemExit: log in first); the run goes"
    )
    assert warnings[1].startswith("the tracker Leaves ended by itself (exit code 3), and the run goes on without it")
    assert [step for step, _ in noted(place, "step")] == [1, 2, 3]


def test_what_a_tracker_leaves_behind_keeps_no_run_from_its_end(place):
    f = following("LeavesAChild")
    with f.during(place, facts(), lambda e: Ending()):
        for step in range(1, 101):
            f.step(step, {"a" * 5_000: 1.0})  # more than a pipe holds
        wait_for(lambda: f.trackers[0].gone)
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 15  # far below the child's minute
    finally:
        os.kill(int((place / "child").read_text()), signal.SIGKILL)


def test_a_tracker_that_is_not_there_is_a_warning(place):
    _, said = run(following("Absent"), place, range(1, 3))
    [warning] = [text for warns, text in said if warns]
    assert warning.startswith("the tracker Absent cannot be loaded (AttributeError")


def test_what_a_tracker_prints_is_in_its_log_and_nowhere_else(place, capfd):
    run(following("Prints"), place, range(1, 2))
    assert capfd.readouterr() == ("", "")
    text = (place / "logs" / "tracker-Prints.txt").read_text()
    assert "over the display" in text and "and below it" in text


def test_a_second_ctrl_c_leaves_trackers_no_time(place):
    f = following("Sleeps", deadline_s=60)
    begin = time.monotonic()
    with f.during(place, facts(), lambda e: Ending("stopped"), hurried=lambda: time.monotonic() - begin > 2):
        f.step(1, {"loss": 1.0})
    assert time.monotonic() - begin < 20


def test_an_interrupt_in_the_wait_leaves_no_tracker_behind(place):
    f = following("Sleeps", "SleepsAtOnce", deadline_s=60)

    def interrupted() -> None:
        raise KeyboardInterrupt(2)

    with pytest.raises(KeyboardInterrupt), f.during(place, facts(), lambda e: Ending(), look=interrupted):
        processes = [psutil.Process(tracker._process.pid) for tracker in f.trackers if tracker._process]
        f.step(1, {"loss": 1.0})
    assert len(processes) == 2 and not any(map(psutil.Process.is_running, processes))


def test_trackers_hear_how_a_run_ended(place):
    f = following("Notes")
    with (
        pytest.raises(ValueError, match="broken"),
        f.during(place, facts(), lambda e: Ending("failed", str(e))),
    ):
        raise ValueError("broken")
    assert noted(place, "end") == [["failed", "broken", {}, "", []]]


def test_a_summary_that_cannot_be_read_ends_no_run(place):
    f = following("Notes")
    with f.during(place, facts(), lambda e: 1 / 0):  # type: ignore[arg-type,return-value]
        pass
    assert noted(place, "end")[0][:2] == ["done", "its summary could not be read (ZeroDivisionError)"]


DRIVER = """
import sys, time
from pathlib import Path
from trd_ray.config import TrackingConfig, from_tree
from trd_ray.trackers.following import Ending, Following, facts_of
name, place = sys.argv[1], Path(sys.argv[2])
f = Following(TrackingConfig(), {name: f"stub_trackers:{name}"})
with f.during(place, facts_of(from_tree({"name": "mine"}), "train", 0, {}), lambda e: Ending()):
    f.step(1, {"loss": 1.0})
    print(f.trackers[0]._process.pid, flush=True)
    time.sleep(1e6)
"""


@pytest.mark.parametrize("name", ["Notes", "Sleeps"])
def test_a_tracker_whose_driver_is_killed_closes_its_run_as_lost_and_ends(place, name):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, name, str(place)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    pid = int(driver.stdout.readline())
    wait_for(lambda: noted(place, "step"))
    tracker = psutil.Process(pid)
    driver.kill()
    driver.wait()
    wait_for(lambda: not (tracker.is_running() and _lives(pid)), 20)
    assert [end[0] for end in noted(place, "end")] == (["lost"] if name == "Notes" else [])


def test_a_ctrl_c_at_the_terminal_is_not_for_trackers(place):
    tracker = KeptApart("Notes", "stub_trackers:Notes", place / "logs" / "x.txt")
    tracker.start()
    assert tracker._process
    pid = tracker._process.pid
    assert os.getpgid(pid) != os.getpgid(0) and os.getsid(pid) != os.getsid(0)
    tracker.put({"do": "begin", "facts": facts() | {"directory": str(place)}})
    wait_for(lambda: noted(place, "begin"))
    os.kill(pid, signal.SIGINT)
    tracker.end({"do": "end", "how": "done", "said": "", "summary": {}, "text": "", "files": []})
    tracker.wait(lambda: time.monotonic() + 60, lambda: None)
    assert noted(place, "end") and (False, "Notes: in notes.jsonl") in tracker.news()


def test_without_trackers_nothing_is_started(place):
    f = Following.of(from_tree({"name": "mine"}))
    with f.during(place, facts(), lambda e: pytest.fail("asked")):
        f.step(1, {"loss": 1.0})
    assert f.trackers == [] and not list((place / "logs").iterdir()) and not (place / "trackers").exists()


def test_a_damaged_or_foreign_note_of_a_run_begins_another(tmp_path):
    kept = KeptRun(tmp_path, "wandb")
    kept.begin("abc", "team/project")
    kept.has(7)
    again = KeptRun(tmp_path, "wandb")
    assert again.find("team/project") and (again.id, again.step) == ("abc", 7)
    assert not KeptRun(tmp_path, "wandb").find("team/other")
    kept.file.write_text('{"id": 3')
    assert not KeptRun(tmp_path, "wandb").find("team/project")


def test_a_table_has_columns_for_every_cell():
    assert len(set(COLUMNS)) == len(COLUMNS) == 12


def test_what_finds_no_room_is_dropped_and_neither_the_first_message_nor_the_last(place):
    tracker = KeptApart("Notes", "stub_trackers:Notes", place / "logs" / "x.txt", queued=2)
    for message in [{"do": "begin", "facts": facts() | {"directory": str(place)}}] + [
        {"do": "step", "step": step, "metrics": {}} for step in (1, 2, 3)
    ]:
        tracker.put(message)  # before there is a process that takes any
    tracker.end({"do": "end", "how": "done", "said": "", "summary": {}, "text": "", "files": []})
    tracker.start()
    tracker.wait(lambda: time.monotonic() + 60, lambda: None)
    assert [step for step, _ in noted(place, "step")] == [1] and noted(place, "begin") and noted(place, "end")
    warnings = [text for warns, text in tracker.news() if warns]
    assert tracker.dropped == 2 and "is 2 messages behind" in warnings[0] and "lacks 2 messages" in warnings[-1]
