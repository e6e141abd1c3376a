"""The door: what is asked is answered once, what is shown appears whole, and nothing that fails there ends a run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trd_ray.errors import RunFailed, UserError
from trd_ray.record.events import append_event, last_events
from trd_ray.session.door import ANSWER, FOLDER, LONGEST_REQUEST, Door
from trd_ray.session.stop import Stopped


def put(path: Path, name: str, text: Any) -> Path:
    folder = path / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return folder / f"{name}{ANSWER}"


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def scaling(arguments: dict[str, Any]) -> str:
    if "refiner" not in arguments:
        raise UserError("there is no such pool: name refiner")
    return f"refiner has {arguments['refiner']} engines now"


def test_a_request_is_answered_once_recorded_and_said(tmp_path):
    said: list[str] = []
    asked: list[dict] = []
    with Door(tmp_path, "train") as door:
        door.tell = said.append
        door.on("scale", lambda arguments: asked.append(arguments) or scaling(arguments))
        answer = put(tmp_path, "a", {"verb": "scale", "arguments": {"refiner": 3}, "by": "me\x1b[2J", "when": 1.0})
        door.look(now=True)
        door.look(now=True)
    assert json.loads(answer.read_text()) == {"ok": True, "said": "refiner has 3 engines now"}
    assert asked == [{"refiner": 3}] and said == ["asked by me\ufffd[2J to scale: refiner has 3 engines now"]
    [event] = [event for event in last_events(tmp_path) if event["kind"] == "asked"]
    assert (event["verb"], event["by"], event["ok"]) == ("scale", "me\x1b[2J", True)


@pytest.mark.parametrize(
    "request_, words",
    [
        ({"verb": "scale", "by": "me"}, "there is no such pool"),
        ({"verb": "dance"}, "does not know dance: it can be asked to break, scale"),
        ({"verb": "break"}, "the run could not do that: ZeroDivisionError"),
        ("{half", 'a request is JSON such as {"verb"'),
        ("[]", "a request is JSON"),
        ({"verb": "scale", "arguments": [1]}, "a request is JSON"),
        ("x" * (LONGEST_REQUEST + 1), "at most 65536 bytes"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_a_sentence_and_the_run_goes_on(tmp_path, request_, words):
    with Door(tmp_path, "train") as door:
        door.on("scale", scaling)
        door.on("break", lambda _: str(1 / 0))
        answer = put(tmp_path, "a", request_)
        door.look(now=True)
    refused = json.loads(answer.read_text())
    assert not refused["ok"] and words in refused["said"]


def test_what_can_no_longer_be_is_refused_by_its_name(tmp_path):
    with Door(tmp_path, "train") as door:
        door.on("pause", lambda _: "it rests")
        door.off("pause")
        answer = put(tmp_path, "a", {"verb": "pause"})
        door.look(now=True)
    assert json.loads(answer.read_text()) == {"ok": False, "said": "the run is about to end"}


def test_a_name_that_leads_elsewhere_is_not_read(tmp_path):
    with Door(tmp_path, "train") as door:
        put(tmp_path, ".half", {"verb": "stop"})
        put(tmp_path, "a b", {"verb": "stop"})
        door.look(now=True)
    assert not list((tmp_path / FOLDER).glob(f"*{ANSWER}"))


def test_what_happens_after_an_answer_may_end_the_run_but_the_answer_is_there(tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt(15)

    answer = put(tmp_path, "a", {"verb": "stop"})
    with pytest.raises(KeyboardInterrupt), Door(tmp_path, "train") as door:
        answer = put(tmp_path, "a", {"verb": "stop"})
        door.on("stop", lambda _: door.afterwards(stop) or "at once")
        door.look(now=True)
    assert json.loads(answer.read_text())["said"] == "at once"
    assert status(tmp_path)["ended"]["how"] == "stopped"


def test_what_an_earlier_start_was_asked_is_forgotten_and_a_late_request_is_told_of_the_end(tmp_path):
    asked: list[dict] = []
    answer = put(tmp_path, "old", {"verb": "scale"})
    door = Door(tmp_path, "train")
    with door:
        door.on("scale", lambda arguments: asked.append(arguments) or "done")
        door.look(now=True)
        late = put(tmp_path, "late", {"verb": "scale"})
    assert not asked and not answer.exists()
    assert "has just ended" in json.loads(late.read_text())["said"]


def test_a_look_costs_nothing_within_the_same_second(tmp_path):
    with Door(tmp_path, "train") as door:
        answer = put(tmp_path, "a", {"verb": "scale"})
        door._looked = float("inf")
        door.look()
        assert not answer.exists()
        door._looked = 0.0
        door.look()
        assert answer.exists()


def test_the_status_says_where_the_run_is_and_a_figure_that_fails_says_why(tmp_path):
    with Door(tmp_path, "train") as door:
        door.shows("step", lambda: 3)
        door.shows("pools", lambda: {}["gone"])
        door.shows("odd", lambda: {(1, 2): 3})
        door.shows("loss", lambda: [float("nan"), 1.5])
        door.look(now=True)
        seen = status(tmp_path)
        assert seen["pid"] == os.getpid() and seen["program"] == "train" and seen["ended"] is None
        assert seen["step"] == 3 and seen["pools"] == {"error": "KeyError: 'gone'"}
        assert seen["odd"]["error"].startswith("TypeError: keys must be") and seen["loss"] == [None, 1.5]
        assert seen["started"] <= seen["written"]
    assert status(tmp_path)["ended"]["how"] == "done"
    assert [event["kind"] for event in last_events(tmp_path)] == ["start", "end"]


@pytest.mark.parametrize(
    "e, how, said",
    [
        (RunFailed("a pool died"), "failed", "a pool died"),
        (UserError("no room"), "failed", "no room"),
        (Stopped(15, "checkpoint 3 is kept"), "stopped", "SIGTERM; checkpoint 3 is kept"),
        (ValueError("a bug"), "failed", "ValueError"),
    ],
)
def test_the_end_is_written_with_its_sentence(tmp_path, e, how, said):
    with pytest.raises(type(e)), Door(tmp_path, "train"):
        raise e
    assert (status(tmp_path)["ended"]["how"], status(tmp_path)["ended"]["said"]) == (how, said)


def test_a_disk_that_takes_nothing_more_does_not_end_the_run(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    asked: list[dict] = []
    with Door(tmp_path, "train") as door:
        door.on("scale", lambda arguments: asked.append(arguments) or "done")
        with monkeypatch.context() as patched:
            patched.setattr("trd_ray.session.door.replace_text", full)
            patched.setattr("trd_ray.record.events.os.open", full)
            answer = put(tmp_path, "a", {"verb": "scale"})
            door.look(now=True)
            door.look(now=True)
        assert not answer.exists()
        door.look(now=True)  # there is room again
    assert json.loads(answer.read_text())["said"] == "done" and len(asked) == 1


def test_a_half_written_status_of_a_killed_run_is_removed_when_it_starts_again(tmp_path):
    left = tmp_path / ".status.json.77.tmp"
    left.touch()
    with Door(tmp_path, "train"):
        assert not left.exists()


def test_a_run_that_is_part_of_another_lets_that_one_be_asked_too(tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    above = Door(tmp_path, "compare")
    above.is_in_ray("127.0.0.1:6379", local=True)
    with above, Door(part, "train", above=above) as door:
        assert status(part)["ray"] == {"address": "127.0.0.1:6379", "local": True}
        above.on("stop", lambda _: "stopping")
        answer = put(tmp_path, "a", {"verb": "stop"})
        above._looked = 0.0
        door.look(now=True)
    assert json.loads(answer.read_text())["said"] == "stopping"


def test_events_are_read_newest_last_without_what_a_crash_cut(tmp_path):
    for number in range(3):
        append_event(tmp_path, "scale", said=f"{number}")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"when": 1, "ki')
    assert [event["said"] for event in last_events(tmp_path, 2)] == ["1", "2"]
    append_event(tmp_path, "scale", said="3")
    assert [event["said"] for event in last_events(tmp_path, 2)] == ["2", "3"]
    assert last_events(tmp_path / "nowhere") == []
