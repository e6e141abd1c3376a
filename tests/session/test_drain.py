"""How a run waits for requests in flight before a weight sync: watched, as long as it takes, saying what failed."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from trd_ray.errors import RunFailed
from trd_ray.session.session import Session


class Drained(Exception):
    pass


@pytest.fixture
def session(monkeypatch):
    """Session with two pools that follow the learner and one that does not; `told` is what it asked and saw."""
    made: Any = Session.__new__(Session)
    made.told, made.ends = [], {"sampler": [None], "refiner": [None]}  # what each answers, one after the other

    def pool(name: str) -> Any:
        asked = SimpleNamespace(remote=lambda: made.told.append(name) or name)
        return SimpleNamespace(drain=asked, forget_weights=asked)

    def get(names: list[str]) -> None:
        for name in names:
            if problem := made.ends[name].pop(0):
                raise problem

    def wait(names: list[str], timeout: float) -> tuple[list[str], list[str]]:
        ready = [name for name in names if made.ends[name][0] is not Drained][:1]
        for name in names:
            if made.ends[name][0] is Drained:
                made.ends[name].pop(0)
        return ready, [name for name in names if name not in ready]

    made.pools = {name: pool(name) for name in ("sampler", "refiner", "other")}
    made.following = lambda: {"sampler": "student", "refiner": "student"}
    made.look = lambda: made.told.append("look")
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    return made


def test_only_pools_that_get_weights_drain_and_the_others_are_watched_meanwhile(session):
    session.ends["sampler"] = session.ends["refiner"] = [Drained, Drained, None, None]
    assert session.drain() is None
    assert session.told[:2] == ["sampler", "refiner"] and "look" in session.told and "other" not in session.told


def test_a_wait_that_took_too_long_is_told_and_the_push_may_be_tried_again(session):
    session.ends["sampler"] = [TimeoutError("pool sampler waited 3720 s for requests to finish")]
    assert session.drain() == "TimeoutError: pool sampler waited 3720 s for requests to finish"


def test_a_pool_that_fails_meanwhile_ends_the_run_with_its_own_words(session):
    def look() -> None:
        raise RunFailed("engine sampler-0 died twice in a row")

    session.ends["sampler"] = [RuntimeError("PoolFailed")]
    session.look = look
    with pytest.raises(RunFailed, match="died twice in a row"):
        session.drain()


def test_pools_that_are_to_forget_another_run_s_weights_are_watched_meanwhile(session):
    session.ends["sampler"] = session.ends["refiner"] = [Drained, Drained, None, None]
    session.forget_weights()
    assert session.told[:2] == ["sampler", "refiner"] and "look" in session.told and "other" not in session.told
