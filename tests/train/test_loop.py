from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.rows import to_table
from trd_ray.train.loop import Training


def training(told: list[str], **parts: Any) -> Any:
    """The parts of a run that its end and its records use; each writes into `told` that it was asked."""

    def tells(what: str) -> Any:
        return lambda *_: told.append(what)

    made: Any = Training.__new__(Training)
    made.session = SimpleNamespace(
        stop=SimpleNamespace(hurried=False), display=SimpleNamespace(step=tells("show")), warn=tells("warn")
    )
    made.directory = SimpleNamespace(write_rows=tells("rows"))
    made.trainer = SimpleNamespace(take_worked=list, stop=tells("stop the learner"))
    made.clock = SimpleNamespace(close=tells("timeline"), draw=tells("draw"))
    made.metrics = SimpleNamespace(close=tells("metrics"), log=tells("log"))
    made.feed = SimpleNamespace(close=tells("feed"))
    made.recipe, made.done, made.recorded = None, 0, {}
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def test_every_part_is_closed_also_when_another_cannot_be():
    def broken() -> None:
        raise RuntimeError("broken")

    told: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        training(told, metrics=SimpleNamespace(close=broken)).close()
    assert told == ["feed", "timeline", "stop the learner"]


def test_a_step_whose_metrics_are_logged_is_recorded_whatever_comes_after_them(monkeypatch):
    def full(_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("trd_ray.train.loop.warnings.of_rows", lambda *_: {})
    told: list[str] = []
    made = training(told)
    made.session.warn = full
    with pytest.raises(OSError, match="no space left"):
        made.record(1, to_table([]), [], {"loss": 0.5})
    assert told == ["rows", "log", "show"] and (made.done, made.recorded) == (1, {"loss": 0.5})
