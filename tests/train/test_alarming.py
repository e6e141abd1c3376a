"""The alarms of a run that goes on: who is told, what is kept, what stops it. The run's parts are stand-ins."""

import io
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from trd_ray import alarms
from trd_ray.config import load
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.events import last_events
from trd_ray.record.metrics import Metrics
from trd_ray.rows import to_table
from trd_ray.session.door import Door
from trd_ray.session.seen import look_at
from trd_ray.session.stop import StopSignals
from trd_ray.steer.screen import screen
from trd_ray.train import alarming, command
from trd_ray.train.alarming import Alarming, slowest_rank
from trd_ray.train.own_hooks import Hooks
from trd_ray.train.store_spills import StoreSpills, spilled_bytes


class Run:
    """A session as far as alarms see it, on a directory that stays."""

    def __init__(self, place, *keys: str, done: int = 0):
        self.recipe = load("miniature_opsd", ["stream.max_staleness=1", *keys])
        self.directory = RunDirectory.create(place, self.recipe, resume=place.exists())
        self.console = Console(file=io.StringIO(), width=200)
        self.display = Display(40, self.console)
        self.door = Door(self.directory.path, "train")
        self.stop = StopSignals()
        self.figures = SimpleNamespace(last={"refiner": {"tokens": 5}})
        self.doing: dict[str, Any] | None = None
        session: Any = self
        self.alarms = Alarming(session, done, lambda: self.doing)

    def step(self, number: int, kl: float = 0.1, worked: Any = (), **more: Any) -> dict[str, float]:
        """Record a step as the loop does; returns what the alarms add to its metrics."""
        metrics = {"rollouts": 16, "trained_rows": 16, "kl/mean": kl, "time_s": time.time()} | more
        added = self.alarms.step(number, metrics, [], worked)
        with open(self.directory.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": number} | metrics | added) + "\n")
        self.alarms.tell()
        return added

    def steps(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.step(number)

    @property
    def said(self) -> str:
        return self.console.file.getvalue()  # pyright: ignore

    @property
    def events(self) -> list[dict]:
        return [event for event in last_events(self.directory.path) if event["kind"] == "alarm"]

    def end(self) -> None:
        self.alarms.close()
        self.directory.release()


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch):
    monkeypatch.setattr(alarming, "StoreSpills", lambda: SimpleNamespace(take=dict, close=lambda: None))


@pytest.fixture
def run(tmp_path):
    one = Run(tmp_path / "r")
    yield one
    one.end()


def test_an_alarm_is_said_once_where_it_begins_and_is_in_every_place_that_tells_of_it(run):
    run.steps(1, 11)
    assert alarms.read(run.directory.path) == [] and run.said == ""
    assert run.step(12, kl=2.0)["alarm/kl_spike"] == 1.0
    run.step(13, kl=2.0)
    assert run.said.count("alarm: kl_spike: The KL of step 12 is 2 a token, 20 times") == 1
    assert run.said.count("\n") == 1 and run.said == (run.directory.path / "train.log").read_text()
    [event] = run.events
    [one] = alarms.read(run.directory.path)
    assert event["name"] == one["name"] == "kl_spike" and event["since_step"] == one["since_step"] == 12
    assert one["until_step"] is None and run.alarms.lasting() == ["kl_spike"]
    assert run.step(14)["alarm/kl_spike"] == 0.0
    assert alarms.read(run.directory.path)[0]["until_step"] == 14
    assert [bool(event.get("over")) for event in run.events] == [False, True] and run.said.count("\n") == 1


def test_status_shows_the_alarms_that_last_and_does_not_repeat_them_as_the_last_event(run):
    run.steps(1, 11)
    run.step(12, kl=2.0)
    view = look_at(run.directory.path)
    assert [one["name"] for one in view["alarms"]] == ["kl_spike"] and view["alarm"]["name"] == "kl_spike"
    assert json.loads(json.dumps(view)) == view
    text = screen(view)
    assert "alarm since step 12, kl_spike: The KL of step 12" in text and "learner.lr" in text
    assert "last alarm" not in text
    run.step(13)
    view = look_at(run.directory.path)
    assert view["alarms"] == [] and "last alarm" in screen(view) and "is over" not in screen(view).split("\n\n")[0]


def test_a_run_that_goes_on_takes_back_the_alarms_of_steps_that_it_does_again(tmp_path):
    one = Run(tmp_path / "r")
    one.steps(1, 11)
    one.step(12, kl=2.0)
    one.end()
    one.directory.rewind(10)
    again = Run(tmp_path / "r", done=10)
    assert alarms.read(again.directory.path) == [] and again.said == ""
    again.steps(11, 11)
    again.step(12, kl=2.0)
    again.end()
    goes_on = Run(tmp_path / "r", done=12)
    assert goes_on.said == "alarms that last: kl_spike (since step 12); see alarms.json\n"
    goes_on.step(13)
    assert [(a["since_step"], a["until_step"]) for a in alarms.read(goes_on.directory.path)] == [(12, 13)]
    goes_on.end()


def test_a_silent_alarm_is_a_metric_and_in_no_place_that_tells(tmp_path):
    one = Run(tmp_path / "r", "alarms.silent=[kl_spike]")
    one.steps(1, 11)
    assert one.step(12, kl=2.0)["alarm/kl_spike"] == 1.0
    one.end()
    assert one.said == "" and one.events == [] and alarms.read(one.directory.path) == []
    assert not (one.directory.path / "alarms.json").exists()


def test_an_alarm_of_stop_on_asks_the_run_to_stop_and_one_that_lasts_lets_it_go_on(tmp_path):
    one = Run(tmp_path / "r", "alarms.stop_on=[kl_spike]")
    one.steps(1, 11)
    assert one.stop.received is None
    one.step(12, kl=2.0)
    assert one.stop.received and one.stop.by == "the alarm kl_spike (alarms.stop_on)"
    one.end()
    goes_on = Run(tmp_path / "r", "alarms.stop_on=[kl_spike]", done=12)
    goes_on.step(13, kl=2.0)
    assert goes_on.stop.received is None
    goes_on.end()


def test_a_full_disk_costs_the_file_and_nothing_else(run, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trd_ray.alarms.kept.write_atomically", full)
    run.steps(1, 11)
    run.step(12, kl=2.0)
    assert "kl_spike" in run.said
    monkeypatch.undo()
    run.step(13)
    assert alarms.read(run.directory.path)[0]["until_step"] == 13


def test_a_run_in_which_nothing_moves_says_so_in_its_wait_and_that_it_goes_on(run, monkeypatch):
    run.steps(1, 5)
    now = time.time()
    run.doing = {"what": "wait", "since": now, "waits_for": "refiner"}
    for second in range(0, 700):
        monkeypatch.setattr("trd_ray.train.alarming.time.time", lambda s=second: now + s)
        run.door.look(now=True)
    assert run.said.count("no_progress: Nothing has moved for 10 min: rows are awaited from refiner") == 1
    assert run.alarms.lasting() == ["no_progress"]
    run.figures.last = {"refiner": {"tokens": 6}}
    run.door.look(now=True)
    assert run.alarms.lasting() == [] and [bool(event.get("over")) for event in run.events] == [False, True]


def test_a_corpus_for_which_no_row_comes_says_so_too_and_not_once_it_is_over(tmp_path, monkeypatch):
    one = Run(tmp_path / "r")
    one.end()
    session: Any = one
    session.followers = session.room = SimpleNamespace()
    session.inputs = SimpleNamespace(total_steps=1, problems=None, rows_in_step=lambda step: 16)
    session.wait_until_started = session.look = lambda: None
    now = time.time()

    def looks(seconds: range) -> None:
        for second in seconds:
            monkeypatch.setattr("trd_ray.train.alarming.time.time", lambda s=second: now + s)
            one.door.look(now=True)

    class Silent:
        def take(self, *_: Any) -> Any:
            looks(range(0, 1900, 20))
            raise TimeoutError("no row came")

        def close(self) -> None:
            pass

    monkeypatch.setattr(command, "start_feed", lambda *_, **__: Silent())
    for name in ("report_html", "summarise"):
        monkeypatch.setattr(command, name, lambda *_, **__: None)
    with pytest.raises(TimeoutError):
        command.refine_run(session, 0)
    assert one.said.count("no_progress: Nothing has moved for 30 min: rows are awaited") == 1
    assert json.loads((one.directory.path / "status.json").read_text())["alarms"] == ["no_progress"]
    one.figures.last = {}
    looks(range(1900, 4000, 30))
    assert one.said.count("no_progress") == 1 and len(one.events) == 1


def test_what_befell_a_corpus_is_known_when_it_goes_on(tmp_path):
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    table = to_table([fixed | {"row": 0, "step": 0, "train": False}])
    one = Run(tmp_path / "r")
    session: Any = one
    session.room = SimpleNamespace(having=lambda what, act: act())
    for n in range(3):
        one.directory.event("engine", what="restarts", engine=f"sampler-{n}", said="it restarts")
    with Metrics(one.directory.path, 2, board=False) as metrics:
        command._keep(session, metrics, 1, table, Hooks(), one.alarms)
    assert one.alarms.lasting() == ["engine_restarts"]
    one.end()
    again = Run(tmp_path / "r", done=1)
    assert again.alarms.lasting() == ["engine_restarts"]
    again.end()


def test_what_the_machines_show_is_a_metric(run):
    folder = run.directory.path / "checkpoints" / "step-000001"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(2**20))
    run.directory.event("checkpoint", step=1)
    added = run.step(1, worked=[(0, "train", 0.0, 10.0), (1, "train", 0.0, 15.0), (2, "train", 0.0, 10.0),
                                (1, "checkpoint", 0.0, 90.0)])  # fmt: skip
    assert added["checkpoint/gib"] == pytest.approx(2**-10) and added["disk/free_gib"] > 0
    assert added["learner/slowest_rank"] == 1 and added["learner/slowest_rank_ratio"] == 1.5
    assert slowest_rank([(0, "train", 0.0, 10.0)]) == {} == slowest_rank([])


def test_what_the_object_store_spills_is_counted_from_the_first_answer_on():
    totals = iter([3 * 2**30, 3 * 2**30, 5 * 2**30, 1 * 2**30])
    total = next(totals)

    def ask() -> Any:
        return SimpleNamespace(store_stats=SimpleNamespace(spilled_bytes_total=total))

    spills = StoreSpills(ask, ask_s=0.01)

    def taken() -> dict[str, float]:
        time.sleep(0.2)
        return spills.take()

    assert taken() == {} and taken() == {"store/spilled_gib": 0.0}
    total = 5 * 2**30
    assert taken() == {"store/spilled_gib": 2.0}
    total = 2**30  # the raylet started again
    assert taken() == {"store/spilled_gib": 0.0}
    spills.close()


def test_a_raylet_that_does_not_answer_leaves_the_metric_out():
    def broken() -> Any:
        raise RuntimeError("Every raylet is dead")

    spills = StoreSpills(broken, ask_s=0.01)
    time.sleep(0.1)
    assert spills.take() == {} == spills.take()
    spills.close()


def test_ray_s_own_reply_has_the_bytes_that_are_read():
    from ray.core.generated import node_manager_pb2

    reply = node_manager_pb2.FormatGlobalMemoryInfoReply()  # pyright: ignore - made by protobuf
    reply.store_stats.spilled_bytes_total = 7
    assert spilled_bytes(reply) == 7
