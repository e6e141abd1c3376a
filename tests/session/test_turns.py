"""Pools that share a GPU start one after another, and the learner after them: vLLM measures what is free meanwhile."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from trd_ray.config import load
from trd_ray.engine import launch
from trd_ray.engine.reservation import Reservation
from trd_ray.preflight.machines import Machine
from trd_ray.session import session as session_module
from trd_ray.session.inputs import prepare
from trd_ray.session.session import Session

SHARED = ["sampler.gpus=0.3", "refiner.gpus=0.3", "learner.gpus=0.4", "learner.lora={}", "sync.lora=adapter",
          "sampler.memory_utilization=0.28", "refiner.memory_utilization=0.28"]  # fmt: skip


class Start:
    """The start of a pool, under way until it is let go."""

    def __init__(self, name: str):
        self.name, self.done = name, False


@pytest.fixture
def started(monkeypatch):
    """The starts of pools in their order; pools and Ray are stand-ins."""
    found: list[Start] = []

    def create_pool(*_: Any, actor: Any, **__: Any) -> Any:
        def start() -> Start:
            found.append(Start(actor.name))
            return found[-1]

        status = SimpleNamespace(remote=lambda: {"up": 0, "engines": 1, "pid": 1, "news": []})
        return SimpleNamespace(start=SimpleNamespace(remote=start), status=status)

    def wait(refs: list, num_returns: int, timeout: float) -> tuple[list, list]:
        return [r for r in refs if not isinstance(r, Start) or r.done], [
            r for r in refs if isinstance(r, Start) and not r.done
        ]

    monkeypatch.setattr(session_module, "create_pool", create_pool)
    monkeypatch.setattr(session_module, "reserve", lambda plan, *_: Reservation(plan))
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    return found


def session(tmp_path, gpus: int, *overrides: str) -> Session:
    inputs = prepare(load("miniature_opsd", ["data.limit=64", "cluster.memory_gib=64", *overrides]))
    directory: Any = SimpleNamespace(path=tmp_path)
    display: Any = SimpleNamespace(starting=lambda _: None, phase=lambda _: None, where=lambda _: None)
    stop: Any = SimpleNamespace(check=lambda: None)
    return Session(inputs, directory, display, stop, [Machine("a", 16, gpus=gpus, gpu_gib=24)])


def test_on_one_gpu_sampler_refiner_and_learner_start_in_turn(started, tmp_path):
    on_one = session(tmp_path, 1, *SHARED)
    on_one.start(student_path="m", version=0)
    assert on_one.learner_waits_for_engines
    on_one.look_at_start()
    assert [start.name for start in started] == ["sampler"]
    started[0].done = True
    on_one.look_at_start()
    assert [start.name for start in started] == ["sampler", "refiner"]
    started[1].done = True
    on_one.admit_learner()  # returns when both are up
    assert not on_one.starting and not on_one.to_start


def test_who_shares_nothing_starts_at_once(started, tmp_path):
    apart = session(tmp_path, 3, "learner.lora={}", "sync.lora=adapter")
    apart.start(student_path="m", version=0)
    assert [start.name for start in started] == ["sampler", "refiner"]
    assert not apart.learner_waits_for_engines
    apart.admit_learner()  # waits for nobody
    assert not any(start.done for start in started)


@pytest.mark.parametrize("ends", [True, False], ids=["in time", "never"])
def test_the_run_is_looked_at_while_its_pools_stop_and_they_are_killed_in_any_case(monkeypatch, ends):
    now, looks, killed = 0.0, [], []

    def wait(refs: list, num_returns: int, timeout: float) -> tuple[list, list]:
        nonlocal now
        now += timeout
        return (refs, []) if ends and now >= 3 else ([], refs)

    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", killed.append)
    pool: Any = SimpleNamespace(shutdown=SimpleNamespace(remote=lambda: "stopped"))
    launch.stop_pools([pool], 10, lambda: looks.append(now))
    assert looks == [1, 2, 3] if ends else looks[-1] == 10
    assert killed == [pool]

    def hurry() -> None:
        raise KeyboardInterrupt

    now = 0.0
    with pytest.raises(KeyboardInterrupt):
        launch.stop_pools([pool], 10, hurry)
    assert killed == [pool, pool]
