"""Engines whose nodes have gone: who is given another place, and who waits for a node. No Ray, and no pool, runs."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.config import from_tree
from trd_ray.errors import RunFailed
from trd_ray.session import session as session_module
from trd_ray.session.session import SEAT_EVERY_S, Session

WELL = {"failure": None, "homeless": [], "up": 1, "restarting": False}


@pytest.fixture
def session(monkeypatch):
    """A session that is told the status of its pools, and where there is room: `told` is what it asked for."""
    made: Any = Session.__new__(Session)
    made.told, made.room, made.seated_s = [], set(), -SEAT_EVERY_S

    def seats_again(*starting: tuple[str, int], wait_s: float | None = None) -> None:
        made.told.append((*starting, "waits" if wait_s is None else "looks"))
        if not set(starting) <= made.room and wait_s is not None:
            raise RunFailed("no place")
        if wait_s is None and not made.room:
            raise RunFailed("the nodes that are left have no place for sampler 0, also after 600 s")

    def pool(name: str) -> Any:
        return SimpleNamespace(seat=SimpleNamespace(remote=lambda places: made.told.append((name, *places))))

    made.pools = {name: pool(name) for name in ("sampler", "refiner")}
    made.reservation = SimpleNamespace(places_by_number=lambda name: dict.fromkeys(range(4), "place"))
    monkeypatch.setattr(made, "seats_again", seats_again)
    monkeypatch.setattr(made, "check", lambda: None)
    monkeypatch.setattr(session_module, "has_dead_node", lambda plan: False)
    made.plan = None
    return made


def looks(session: Any, **statuses: dict) -> None:
    session.statuses = lambda *_: {name: WELL | statuses.get(name, {}) for name in session.pools}
    session.look()


def test_an_engine_is_seated_where_there_is_room(session):
    session.room = {("refiner", 2)}
    looks(session, refiner={"homeless": [2]})
    assert session.told == [(("refiner", 2), "looks"), ("refiner", 2)]


def test_a_pool_that_has_other_engines_goes_on_with_fewer_and_is_looked_after_again_later(session):
    looks(session, refiner={"homeless": [2]})
    looks(session, refiner={"homeless": [2]})
    assert session.told == [(("refiner", 2), "looks")]
    session.seated_s -= SEAT_EVERY_S
    looks(session, refiner={"homeless": [2]})
    assert len(session.told) == 2


def test_a_pool_without_any_engine_waits_for_a_node_and_the_run_ends_without_one(session):
    with pytest.raises(RunFailed, match="no place for sampler 0, also after 600 s"):
        looks(session, sampler={"homeless": [0, 1], "up": 0})
    assert session.told == [(("sampler", 0), "looks"), (("sampler", 0), "waits")]


def test_one_place_is_enough_for_a_pool_to_go_on(session):
    session.room = {("sampler", 0)}
    looks(session, sampler={"homeless": [0, 1], "up": 0})
    assert session.told == [(("sampler", 0), "looks"), ("sampler", 0), (("sampler", 1), "looks")]


def test_in_a_step_the_learner_is_seated_before_engines_if_its_node_has_gone_too(session, monkeypatch):
    session.door, session.room = SimpleNamespace(look=lambda: None), {("sampler", 0)}
    for has_gone in (True, False):
        monkeypatch.setattr(session_module, "has_dead_node", lambda plan, gone=has_gone: gone)
        glances(session, sampler={"homeless": [0], "up": 0})
        assert bool(session.told) is not has_gone


def glances(session: Any, **statuses: dict) -> None:
    session.pulse = SimpleNamespace(soon=lambda timeout_s: {name: WELL | said for name, said in statuses.items()})
    session.glance()


def test_in_a_step_an_engine_is_seated_too_and_nobody_waits_or_is_stopped(session, monkeypatch):
    session.door = SimpleNamespace(look=lambda: None)
    monkeypatch.setattr(session, "check", lambda: pytest.fail("the run may be stopped here"))
    glances(session, sampler={"homeless": [0], "up": 0})
    assert session.told == [(("sampler", 0), "looks")]
    session.seated_s, session.room = -SEAT_EVERY_S, {("sampler", 0)}
    glances(session, sampler={"homeless": [0], "up": 0})
    assert session.told[1:] == [(("sampler", 0), "looks"), ("sampler", 0)]


def test_who_looks_for_a_place_without_waiting_for_it_is_not_stopped_there(session, monkeypatch):
    def without_a_place(*_: Any, while_waiting: Any, **__: Any) -> None:
        while_waiting()
        raise RunFailed("no place")

    session.door = SimpleNamespace(look=lambda: session.told.append("door"))
    session.recipe, session.seating = from_tree({"name": "r"}), threading.RLock()
    session.display = SimpleNamespace(shown=lambda: {"phase": "training"}, phase=lambda text: None)
    monkeypatch.setattr(session, "check", lambda: session.told.append("check"))
    monkeypatch.setattr(session_module, "seats_again", without_a_place)
    for wait_s in (0.0, None):
        with pytest.raises(RunFailed):
            Session.seats_again(session, ("sampler", 0), wait_s=wait_s)
    assert session.told == ["door", "check"]


def test_a_learner_whose_seats_were_left_out_on_a_node_that_left_is_seated_again(session, monkeypatch):
    """Another engine was seated again while its node was about to go, and now the node has gone."""
    session.recipe, session.seating = from_tree({"name": "r", "cluster": {"address": "auto"}}), threading.RLock()
    session.plan = SimpleNamespace(seats_of=lambda actor: [])
    session.reservation = SimpleNamespace(plan=session.plan)
    monkeypatch.setattr(session, "ranks_if_seated_now", lambda: None)
    monkeypatch.setattr(session, "_most_ranks", lambda most: None)
    monkeypatch.setattr(session_module, "lost_ranks", lambda plan: [])
    with pytest.raises(RunFailed, match="no place"):
        session.seat_learner(1)
    assert session.told == [(("learner", 0), "waits")]
