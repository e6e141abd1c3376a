"""Figures of pools: a rate over seconds, a busy share that forgets, and no wait for an answer."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from trd_ray.session import session as session_module
from trd_ray.session.pool_figures import MEMORY_S, PoolFigures
from trd_ray.session.session import Session


class Told:
    def __init__(self, pools: Any = None):
        self.now = 100.0
        self.figures = PoolFigures(pools or {}, {"sampler": 4}, lambda: self.now)

    def hear(self, tokens: int = 0, running: int = 0, restarts: int = 0, after: float = 1.0) -> dict[str, Any]:
        self.now += after
        self.figures.heard("sampler", {"tokens": tokens, "running": running, "restarts": restarts, "up": 2})
        return self.figures.last["sampler"]


def test_tokens_a_second_are_counted_over_at_least_two_seconds():
    told = Told()
    assert told.hear(tokens=1000)["tokens_per_s"] == 0
    assert told.hear(tokens=1100)["tokens_per_s"] == 0
    assert told.hear(tokens=1300)["tokens_per_s"] == 150
    assert told.hear(tokens=9000)["tokens_per_s"] == 150


def test_the_next_process_of_a_pool_counts_its_tokens_from_0_and_has_no_rate_below_that():
    told = Told()
    told.hear(tokens=9000)
    assert told.hear(tokens=10, after=2.0)["tokens_per_s"] == 0
    assert told.hear(tokens=210, after=2.0)["tokens_per_s"] == 100


def test_the_busy_share_is_that_of_the_places_and_forgets():
    told = Told()
    assert told.hear(running=4)["busy"] == 0.5
    assert told.hear(running=80, after=1e6)["busy"] == 1.0
    assert told.hear(running=0, after=MEMORY_S)["busy"] == pytest.approx(1 / math.e, abs=1e-3)


def test_a_pool_is_asked_without_waiting_and_one_that_died_says_so(monkeypatch):
    ready: list[str] = []
    answers: dict[str, Any] = {"ref": {"tokens": 0, "running": 2, "restarts": 0, "up": 1}}
    pools = {"sampler": SimpleNamespace(status=SimpleNamespace(remote=lambda: "ref"))}

    def get(ref: str) -> Any:
        if isinstance(answers[ref], Exception):
            raise answers[ref]
        return answers[ref]

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([r for r in refs if r in ready], []))
    monkeypatch.setattr(ray, "get", get)
    figures = Told(pools).figures
    assert figures.latest() == {}
    assert figures.latest() == {}
    ready.append("ref")
    assert figures.latest()["sampler"]["running"] == 2
    answers["ref"] = RuntimeError("the actor\ndied")
    died = figures.latest()["sampler"]
    assert died["failure"] == "RuntimeError: the actor died" and died["running"] == 2
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    answers["ref"] = {"tokens": 0, "running": 5, "restarts": 0, "up": 1}
    assert figures.latest()["sampler"]["running"] == 2, "a Ray that has ended is not asked, lest it start again"


def test_pools_that_are_stopped_at_the_end_are_shown_as_they_were(monkeypatch):
    """What they say then is that they were shut down, which nobody should take for a failure of the run."""
    last = {"sampler": {"up": 1, "failure": None}}
    session: Any = Session.__new__(Session)
    session.pools = {"sampler": None}  # whoever asks it fails
    session.figures = PoolFigures(session.pools, {"sampler": 4})
    session.figures.last = last
    session.stop = SimpleNamespace(hurried=False)
    session.door = SimpleNamespace(look=session.figures.latest)
    session.reservation = SimpleNamespace(release=lambda: None)
    shown = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(session_module, "stop_pools", lambda pools, wait_s, look: shown.append(look()))
    session.close()
    assert shown == [last]
