"""A node that leaves: a checkpoint comes first, and a run whose driver is there stops after it."""

from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.config import from_tree
from trd_ray.session.notices import Notice
from trd_ray.session.session import Session
from trd_ray.session.stop import Stopped, StopSignals
from trd_ray.train.checkpoints import Checkpoints


class Written(Checkpoints):
    """Checkpoints that are written as soon as they are begun, and keep their steps."""

    def __init__(self, saved: int):
        super().__init__(from_tree({"checkpoint": {"every_steps": 50}}), SimpleNamespace(), SimpleNamespace(), saved)  # type: ignore[arg-type]
        self.begun_at: list[int] = []

    def begin(self, steps: int, version: int, metrics: dict[str, Any]) -> None:
        self.begun_at.append(steps)
        self.saved = steps


def session(*notices: Notice) -> tuple[Any, list[str]]:
    said: list[str] = []
    waiting = list(notices)
    made: Any = Session.__new__(Session)
    made.door = SimpleNamespace(look=lambda: None)
    made.mirror = None
    made.followers = SimpleNamespace(look=lambda: None)
    made.notices = SimpleNamespace(look=lambda: [waiting.pop(0)] if waiting else [])
    made.display = SimpleNamespace(say=said.append)
    made.directory = SimpleNamespace(event=lambda kind, **facts: said.append(f"{kind}: {facts['node']}"))
    made.stop = StopSignals()
    return made, said


def test_a_checkpoint_is_written_while_rows_are_awaited_and_once():
    checkpoints = Written(saved=0)
    made, said = session(Notice("id", "b", 30.0, is_driver=False))
    made.on_notice = checkpoints.hurry
    made.check()
    assert said == ["node b leaves in 30 s: a checkpoint is written", "notice: b"]
    for _ in range(3):
        checkpoints.while_rows_are_awaited(7, 7, {"loss": 1.0})
    assert checkpoints.begun_at == [7] and not checkpoints.due(8, 100)
    made.check()
    assert len(said) == 2


def test_in_the_middle_of_a_step_it_is_written_when_that_step_is_recorded():
    checkpoints = Written(saved=0)
    checkpoints.hurry()
    assert checkpoints.due(8, 100)
    checkpoints.if_due(8, 100, 8, {"updates": 1, "skipped_updates": 0})
    assert checkpoints.begun_at == [8]


def test_what_a_checkpoint_holds_already_is_not_written_again():
    checkpoints = Written(saved=7)
    checkpoints.hurry()
    checkpoints.while_rows_are_awaited(7, 7, {})
    assert checkpoints.begun_at == [] and not checkpoints.due(8, 100)


def test_the_run_stops_if_the_node_of_its_driver_leaves():
    made, said = session(Notice("id", "d", None, is_driver=True))
    made.on_notice = lambda: None
    with pytest.raises(Stopped, match="^the notice that node d leaves$") as stopped:
        made.check()
    assert stopped.value.exit_code == 143
    assert said[0] == "node d leaves soon: the run ends, after a checkpoint"
