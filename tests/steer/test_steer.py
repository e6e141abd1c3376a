"""`trd status`, `stop` and the others at a run that is a door and nothing else: what they print, ask and refuse."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.cli import main
from trd_ray.config import from_tree
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.session.door import Door
from trd_ray.steer import command, reach
from trd_ray.steer.screen import duration, listing, screen

LIVES = [
    {"name": "refiner-0", "state": "serving", "running": 12},
    {"name": "refiner-1", "state": "starting", "running": 0, "why": "it was killed"},
]
POOL = {
    "up": 1, "engines": 2, "running": 12, "waiting": 3, "busy": 0.756, "tokens_per_s": 3642.4, "version": 12,
    "restarts": 1, "lives": LIVES,
}  # fmt: skip
STATUS = {
    "program": "train", "name": "mine", "host": "h", "written": 999.5, "ended": None, "left_s": 190.0, "paused": False,
    "shown": {"phase": "training", "steps": [12, 40], "rollouts": [5, 64]},
    "doing": {"what": "wait", "since": 997.9, "waits_for": "refiner"},
    "last_step": {"seconds/step": 3.21, "seconds/wait": 2.1, "seconds/train": 0.8, "y_o/passed": 0.61, "kl/mean": 0.02},
    "pools": {"refiner": POOL}, "version": {"learner": 12, "served": 12},
    "checkpoint": {"step": 8, "writing": 12, "asked": False},
}  # fmt: skip
VIEW: dict[str, Any] = {
    "name": "mine", "directory": "/runs/mine", "seen": 1000.0, "state": "running", "holder": "process 7 on h",
    "status": STATUS, "checkpoints": [4, 8], "metrics": {},
    "events": [{"when": 990.0, "kind": "scale", "said": "refiner has 2"}],
    "alarm": {"when": 880.0, "kind": "engine", "said": "engine refiner-1 restarts: it was killed"},
}  # fmt: skip


def test_the_screen_of_a_run_says_what_it_does_in_one_screen():
    text = screen(VIEW)
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 120
    for words in (
        "mine: running on h (train), in /runs/mine",
        "step 12 of 40; about 3 min left; waits for rows since 2 s (refiner); 5 of 64 rows of the step are there",
        "last step 3.2 s: wait 2.1, train 0.8; y_o/passed 0.61, kl/mean 0.02",
        "refiner   1 of 2       12        3   76%      3642       12         1",
        "refiner-0 serving, 12 running; refiner-1 starting (it was killed)",
        "the learner has policy version 12, the engines serve 12",
        "checkpoints 4, 8; 12 is being written",
        "last alarm, 2 min ago: engine refiner-1 restarts: it was killed",
        "scale      refiner has 2",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"state": "silent", "seen": 1100.0}, "alive, but silent for 2 min"),
        ({"state": "paused"}, "resting, trd unpause ends that"),
        ({"state": "dead", "seen": 8200.0}, "its process said nothing for 2.0 h; the same command goes on"),
        (
            {"state": "failed", "status": {**STATUS, "ended": {"how": "failed", "said": "a pool died", "when": 940.0}}},
            "failed 60 s ago on h (train), in /runs/mine\na pool died",
        ),
        ({"state": "ended", "status": {}, "checkpoints": []}, "mine: not running, in /runs/mine"),
        ({"status": {**STATUS, "pools": {"error": "x"}, "doing": None}}, "training; 5 of 64"),
        (
            {"status": {**STATUS, "shown": {"phase": "starting", "steps": [0, 9], "starting": {"sampler": [1, 2]}}}},
            "1 of 2 up",
        ),
        ({"status": {"program": "train", "host": "h", "written": 999.5}}, "in /runs/mine\nstarts\n"),
        (
            {"status": {**STATUS, "shown": {**STATUS["shown"], "evaluations_not_in_left_s": 2}}},
            "step 12 of 40; about 3 min + evaluations; waits",
        ),
        ({"events": [{"when": 0.0, "kind": "end", "said": "x" * 300}]}, "x ..."),
        (
            {"status": {**STATUS, "turn": "the engines have the GPUs"}},
            "(refiner); the engines have the GPUs; 5 of 64 rows of the step are there",
        ),
        (
            {"status": {**STATUS, "doing": {"what": "rest", "since": 997.0}, "turn": "the engines have the GPUs"}},
            "waits for the engines to rest since 3 s; the engines have the GPUs",
        ),
        ({"name": "a\x1b[2Jb"}, "a\ufffd[2Jb: running"),
    ],
)
def test_every_state_of_a_run_has_its_words(changes, words):
    assert words in screen(VIEW | changes)


def test_what_a_pool_says_of_its_engines_is_what_the_screen_reads(tmp_path):
    from serving import pool_spec
    from trd_ray.engine.life import Life

    life = Life(pool_spec("refiner", "model", tmp_path).engine, None)
    pool = POOL | {"lives": [json.loads(json.dumps(life.shown()))]}
    assert f"{life.spec.name} {life.state}" in screen(VIEW | {"status": STATUS | {"pools": {"refiner": pool}}})


def test_a_status_of_another_version_is_one_sentence():
    odd = VIEW | {"status": STATUS | {"pools": {"refiner": {"lives": [{}]}}}}
    with pytest.raises(UserError, match="is of another version of this program .*: --json prints it as it is"):
        command._drawn(odd)


def test_many_runs_are_a_line_each():
    lines = listing([VIEW, VIEW | {"name": "old", "state": "dead", "status": {}, "metrics": {"step": 3}}]).splitlines()
    assert lines[1].split() == ["mine", "running", "12/40", "3", "min", "/runs/mine"]
    assert lines[2].split() == ["old", "dead", "3", "-", "/runs/mine"]


def test_a_status_of_another_version_does_not_hide_the_other_runs():
    odd = VIEW | {"status": STATUS | {"left_s": {"error": "KeyError"}}}
    lines = listing([odd, VIEW]).splitlines()
    assert lines[1].split() == ["mine", "running", "?", "?", "/runs/mine"] and lines[2].split()[2] == "12/40"


@pytest.mark.parametrize("option", ["--lines=0", "--lines=-3", "--timeout=0", "--timeout=nan", "--timeout=inf"])
def test_a_number_that_means_nothing_is_refused_by_name(capsys, option):
    with pytest.raises(SystemExit):
        main(["logs" if "lines" in option else "pause", "mine", option])
    assert f"argument {'-n/--lines' if 'lines' in option else '--timeout'}: must be a" in capsys.readouterr().err


def test_what_a_command_prints_of_a_run_on_a_cluster_goes_to_its_output(tmp_path, monkeypatch, capsys):
    from contextlib import contextmanager

    from trd_ray.session import cluster, porter

    @contextmanager
    def connected(recipe: Any):
        print("the connection's own words")
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "cluster", connected)
    porters = {"run/mine/01000000/-": ("mine", "01000000", "-"), "run/my-own/02000000/-": ("my-own", "02000000", "-")}
    monkeypatch.setattr(porter, "porters", lambda: porters)
    monkeypatch.setattr(reach, "_actor", lambda name, run: None)
    monkeypatch.setattr(reach.There, "ask", lambda *_: "it rests")
    assert main(["pause", "mine-elsewhere", "--address", "head:6379"]) == 2
    assert main(["pause", "mine", "--address", "head:6379"]) == 0
    said = capsys.readouterr()
    assert said.out == "it rests\n" and "the connection's own words" in said.err
    assert main(["pause", "runs/my own/", "--address", "head:6379"]) == 0  # its porter's name has no space


def test_durations_have_the_unit_that_a_person_would_take():
    assert [duration(s) for s in (0.4, 89, 120, 7200, 200_000)] == ["0 s", "89 s", "2 min", "2.0 h", "2.3 days"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run below runs/ that looks at its door, and what it was asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    directory = RunDirectory.create(tmp_path / "runs" / "mine", from_tree({"name": "mine"}))
    done, asked = threading.Event(), []
    door = Door(directory.path, "train")
    wanted: list[int] = []

    def checkpoint(arguments: dict) -> str:
        wanted.append(3)
        return "checkpoint 3 is written when that step is recorded"

    def look() -> None:
        looks = 0
        while not done.wait(0.01):
            looks += 1
            door.look(now=True)
            if wanted and looks > 5:
                (directory.path / "checkpoints" / "step-000003").mkdir(exist_ok=True)
                wanted.clear()

    with door:
        for verb in ("stop", "pause", "unpause", "scale"):
            door.on(verb, lambda arguments, verb=verb: asked.append((verb, arguments)) or f"{verb} it is")
        door.on("checkpoint", checkpoint)
        door.shows("checkpoint", lambda: {"asked": bool(wanted), "writing": None})
        thread = threading.Thread(target=look)
        thread.start()
        yield asked
        done.set()
        thread.join()
    directory.release()


@pytest.mark.parametrize(
    "arguments, asked",
    [
        (["stop", "mine"], ("stop", {"now": False})),
        (["stop", "runs/mine", "--now"], ("stop", {"now": True})),
        (["pause", "mine"], ("pause", {})),
        (["unpause", "mine", "--timeout", "120"], ("unpause", {})),
        (["scale", "mine", "refiner=3", "sampler=2"], ("scale", {"refiner": 3, "sampler": 2})),
        (["scale", "mine", "refiner.strong=3"], ("scale", {"refiner.strong": 3})),
    ],
)
def test_what_is_typed_is_what_the_run_is_asked_and_its_answer_is_printed(run, capsys, arguments, asked):
    assert main(arguments) == 0
    assert run == [asked] and capsys.readouterr().out == f"{asked[0]} it is\n"


def test_a_checkpoint_is_waited_for(run, capsys, monkeypatch):
    monkeypatch.setattr(command, "CHECKPOINT_POLL_S", 0.01)
    assert main(["checkpoint", "mine"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["checkpoint 3 is written when that step is recorded", "checkpoint 3 is written"]


def test_who_waits_for_the_checkpoint_of_a_silent_run_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(command, "CHECKPOINT_POLL_S", 0.0)
    asked = {"status": {"checkpoint": {"asked": True}}, "checkpoints": [3]}
    looks = [asked | {"state": "silent"}] * 3 + [{"status": {}, "state": "running", "checkpoints": [3, 4]}]
    found: Any = SimpleNamespace(look=lambda: looks.pop(0))
    command._wait_for_checkpoint(found, before=[3])
    told, written = capsys.readouterr().out.splitlines()
    assert told.startswith("the run is silent, so this may take long: Ctrl-C") and written == "checkpoint 4 is written"


def test_status_of_one_and_of_all_for_people_and_scripts(run, capsys):
    assert main(["status", "mine"]) == 0
    assert capsys.readouterr().out.startswith("mine: running (train), in ")
    assert main(["status", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"
    assert main(["status"]) == 0
    assert "mine  running" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert [view["name"] for view in json.loads(capsys.readouterr().out)] == ["mine"]


def test_runs_below_runs_are_shown_also_where_the_cluster_cannot_be_reached(run, capsys):
    assert main(["status", "--address", "127.0.0.1:1"]) == 2
    said = capsys.readouterr()
    assert "mine  running" in said.out and "no Ray cluster answers at 127.0.0.1:1" in said.err


def test_logs_are_printed_by_name_and_listed_without_one(run, capsys):
    reach.RUNS.joinpath("mine", "logs", "ray.log").write_text("one\ntwo\x1b[2J\n")
    assert main(["logs", "mine", "ray", "-n", "1"]) == 0
    assert capsys.readouterr().out == "two\ufffd[2J\n"
    assert main(["logs", "mine"]) == 0
    said = capsys.readouterr().out
    assert "start" in said and "logs: ray (0 KiB)" in said
    assert main(["logs", "mine", "ry"]) == 2
    assert "has no log 'ry' (did you mean ray?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["status", "min"], "there is no run min (did you mean mine?): name a run directory"),
        (["stop", "nowhere/else"], "there is no run nowhere/else"),
        (["scale", "mine", "refiner"], "refiner is no size of a pool: say refiner=3"),
        (["scale", "mine", "learner=2"], "learner=2 is no size of a pool"),
        (["scale", "mine", "refiner=0"], "refiner=0 is no size of a pool"),
        (["scale", "mine", "refiner=2", "refiner=3"], "refiner is named twice"),
        (["status", "elsewhere", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, capsys, arguments, words):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_without_runs_the_listing_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["status"]) == 0
    assert "there are no runs below runs/" in capsys.readouterr().out


def test_a_porter_whose_run_has_ended_is_one_sentence(monkeypatch):
    import ray
    from ray.exceptions import ActorDiedError

    def died(*_: Any, **__: Any) -> None:
        raise ActorDiedError()

    monkeypatch.setattr(ray, "get", died)
    with pytest.raises(UserError, match="the run mine has ended: look into its directory"):
        reach.There(None, "mine")._of(None, 1.0)


def test_a_run_that_ends_while_the_cluster_s_are_listed_is_left_out(monkeypatch, tmp_path, capsys):
    from contextlib import contextmanager

    @contextmanager
    def on_cluster(address: str):
        yield {"run/gone/1/-": ("gone", "1", "-"), "run/lives/2/-": ("lives", "2", "-")}

    def actor(name: str, run: str) -> None:
        if run == "gone":
            raise reach.RunHasEnded(run)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach, "on_cluster", on_cluster)
    monkeypatch.setattr(reach, "_actor", actor)
    monkeypatch.setattr(reach.There, "look", lambda self: VIEW | {"name": self.name})
    assert main(["status", "--address", "head:6379"]) == 0
    assert "lives" in (said := capsys.readouterr().out) and "gone" not in said
