"""What a training run can be asked at its door, without a run: its parts are stand-ins that keep what they are told."""

from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.errors import UserError
from trd_ray.record.clock import Clock
from trd_ray.record.timeline import Timeline
from trd_ray.session import pausing
from trd_ray.session.door import Door
from trd_ray.train.steering import Progressed, Steering


class Asked:
    """A run that has done so many steps, and what happened to it."""

    def __init__(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pausing, "LOOK_S", 0.0)
        self.events: list[str] = []
        self.phases: list[str] = []
        self.done, self.trained, self.saved = 3, 3, 2
        self.door = Door(tmp_path, "train")
        display = SimpleNamespace(
            phase=self.phases.append,
            shown=lambda: {"phase": "training", "steps": [self.done, 8]},
            stands_still=lambda: self.phases.append("stands still"),
        )
        directory: Any = SimpleNamespace(
            event=lambda kind, said, **_: self.events.append(said), checkpoints=lambda: [(2, tmp_path / "step-000002")]
        )
        self.checkpoints: Any = SimpleNamespace(
            begun=2, writing=None, asked=False, directory=directory, finish=lambda wait: None
        )
        self.looks = 0
        self.during: dict[int, Any] = {}  # what happens at which look
        self.figures = SimpleNamespace(last={})
        session: Any = SimpleNamespace(door=self.door, display=display, directory=directory, figures=self.figures)
        policy: Any = SimpleNamespace(watch=self.watch, version=3, served=3)
        self.clock = Clock(Timeline(tmp_path / "timeline.json"))
        self.steering = Steering(
            session, self.clock, policy, self.checkpoints, lambda: Progressed(self.done, self.trained, {})
        )

    def watch(self) -> None:
        self.looks += 1
        assert self.looks < 100, "the run rests for ever"
        self.during.get(self.looks, lambda: None)()

    def ask(self, verb: str) -> str:
        return self.door._handlers[verb]({})


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Asked:
    return Asked(tmp_path, monkeypatch)


def test_a_run_rests_between_steps_until_it_is_told_to_go_on(asked):
    asked.steering.rest(save=lambda: None)
    assert asked.looks == 0
    assert "when the step under way is recorded" in asked.ask("pause")
    rests = asked.door._figures["paused"]
    assert not rests()  # yet
    during: list[bool] = []
    asked.during = {4: lambda: during.append(rests()), 5: lambda: asked.ask("unpause")}
    asked.steering.rest(save=lambda: None)
    assert during == [True] and not rests()
    assert asked.looks == 5
    assert asked.events == ["paused after step 3", "goes on after step 3"]
    assert asked.phases == ["paused after step 3", "stands still", "training"]
    assert [span.name for span in asked.clock.spans] == ["pause"]
    assert asked.ask("unpause") == "it does not rest"


def test_a_resting_run_that_is_asked_to_stop_ends(asked):
    def stop() -> None:
        raise RuntimeError("stopped")

    asked.ask("pause")
    asked.during[2] = stop
    with pytest.raises(RuntimeError, match="stopped"):
        asked.steering.rest(save=lambda: None)


def test_a_checkpoint_is_written_when_the_step_is_recorded_at_once_while_the_run_rests_and_never_twice(asked):
    asked.trained = 4  # the update of step 4 is made, but not recorded
    assert asked.ask("checkpoint") == "checkpoint 4 is written when that step is recorded"
    assert asked.checkpoints.asked
    asked.trained, asked.checkpoints.asked = 3, False
    assert asked.ask("checkpoint") == "checkpoint 4 is written when that step is recorded"
    asked.checkpoints.asked = False
    asked.ask("pause")  # it does not rest yet: a step is under way
    assert asked.ask("checkpoint") == "checkpoint 4 is written when that step is recorded"
    asked.checkpoints.asked = False
    said: list[str] = []
    asked.during = {2: lambda: said.append(asked.ask("checkpoint")), 4: lambda: asked.ask("unpause")}
    saved: list[int] = []
    asked.steering.rest(save=lambda: saved.append(asked.done))
    assert said == ["checkpoint 3 is written now"]
    assert saved == [3] and not asked.checkpoints.asked
    asked.checkpoints.begun = 3
    assert asked.ask("checkpoint") == "checkpoint 3 holds all that is recorded already"


@pytest.mark.parametrize("verb", ["pause", "unpause", "checkpoint"])
def test_after_the_last_step_nothing_is_promised(asked, verb):
    asked.steering.over()
    with pytest.raises(UserError, match="the run is about to end"):
        asked.ask(verb)
    assert not asked.checkpoints.asked and not asked.steering.pausing.asked


def test_before_the_first_step_a_checkpoint_is_that_of_the_first_step(asked):
    asked.done = asked.trained = asked.checkpoints.begun = 0
    asked.ask("pause")
    assert asked.ask("checkpoint") == "checkpoint 1 is written when that step is recorded"
    asked.during[3] = lambda: asked.ask("unpause")
    saved: list[int] = []
    asked.steering.rest(save=lambda: saved.append(asked.done))
    assert saved == [] and asked.checkpoints.asked


def test_what_the_rows_wait_for_is_the_last_pool_that_has_requests(asked):
    doing = asked.door._figures["doing"]
    assert doing() is None
    with asked.clock.span("wait"):
        assert doing()["waits_for"] is None
        asked.figures.last = {"sampler": {"running": 3, "waiting": 0}, "refiner": {"running": 0, "waiting": 0}}
        assert doing()["waits_for"] == "sampler"
        asked.figures.last["refiner"]["running"] = 1
        assert doing()["waits_for"] == "refiner"
    with asked.clock.span("train"):
        assert doing()["what"] == "train"


def test_while_the_gpus_are_handed_over_that_is_what_the_run_does(asked):
    with asked.clock.span("probe"):
        assert asked.steering.doing()["what"] == "probe"
        with asked.clock.span("rest"):
            assert asked.steering.doing()["what"] == "rest"
        assert asked.steering.doing()["what"] == "probe"
