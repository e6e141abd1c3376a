"""A run whose nodes are others by now waits for room, says for what, and ends with what is missing."""

import pytest

from trd_ray.config import from_tree
from trd_ray.engine.reservation import Reservation
from trd_ray.errors import RunFailed
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import Need, seated
from trd_ray.session.fresh_seats import seats_again
from trd_ray.session.notices import Notice, Notices
from trd_ray.session.stop import Stopped

A, B, C = (Machine(name, 2.0, node_id=name * 56) for name in "abc")  # as long as Ray's own ids


class Waiting:
    """A run of two engines on two nodes, its clock, and what it said and asked for meanwhile."""

    def __init__(self, *nodes_by_look: list[Machine], wait_s: float = 600):
        plans = [ActorPlan(ActorSpec("sampler", 2, 2.0, 0.0), {}, 0.0)]
        found = seated([Need("sampler", i, 2.0, 0.0) for i in range(2)], [A, B])
        assert isinstance(found, list)
        plan = Placement(plans, {}, {}, 80, "gloo", 0.5, machines=(A, B), seats=tuple(found))
        self.reservation = Reservation(plan)
        self.nodes = list(nodes_by_look)
        self.wait_s = wait_s
        self.now = 0.0
        self.said: list[str] = []
        self.requests: list[list[dict]] = []

    def machines(self, known):
        return self.nodes.pop(0) if len(self.nodes) > 1 else self.nodes[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, while_waiting=lambda: None) -> Reservation:
        [lost] = [("sampler", seat.number) for seat in self.reservation.plan.seats if seat.machine == 1]
        return seats_again(
            [lost], self.reservation, from_tree({}), wait_s=self.wait_s, machines=self.machines,
            while_waiting=while_waiting, say=self.said.append, sleep=self.sleep, clock=lambda: self.now,
            request=lambda bundles: self.requests.append(bundles),
        )  # fmt: skip


def test_a_node_that_is_there_is_taken_at_once():
    waiting = Waiting([A, C])
    found = waiting.run()
    assert [found.plan.machines[seat.machine].name for seat in found.plan.seats] == ["a", "c"]
    assert (waiting.said, waiting.requests, waiting.now) == ([], [], 0.0)
    assert {number: place.node_id for number, place in found.places_by_number("sampler").items()} == {
        0: A.node_id, 1: C.node_id,
    }  # fmt: skip


def test_a_node_that_comes_is_waited_for_and_the_autoscaler_is_asked_for_all_that_there_must_be():
    waiting = Waiting([A], [A], [A, C])
    found = waiting.run()
    assert {found.plan.machines[seat.machine].name for seat in found.plan.seats} == {"a", "c"}
    assert "waiting up to 600 s for a node: sampler" in waiting.said[0]
    assert waiting.requests == [[{"CPU": 2.0}] * 2, []]


def test_a_node_that_does_not_come_ends_the_run_with_what_is_missing():
    waiting = Waiting([A], wait_s=60)
    with pytest.raises(RunFailed) as failed:
        waiting.run()
    told = str(failed.value)
    assert "no place for sampler 1, also after 60 s (cluster.wait_for_nodes_s): sampler 1 needs 2 CPUs" in told
    assert 60 <= waiting.now < 63 and waiting.requests[-1] == []


def test_a_run_that_does_not_wait_says_so_at_once():
    waiting = Waiting([A], wait_s=0)
    with pytest.raises(RunFailed, match="no place for sampler 1: sampler 1 needs 2 CPUs"):
        waiting.run()
    assert waiting.now == 0.0 and waiting.requests == []


def test_a_run_that_waits_for_a_node_can_be_stopped():
    def stop() -> None:
        raise Stopped(15)

    waiting = Waiting([A])
    with pytest.raises(Stopped):
        waiting.run(stop)
    assert waiting.requests[-1] == []


class Told:
    def __init__(self, monkeypatch, **left_s):
        monkeypatch.setattr("trd_ray.session.notices._host", lambda node: f"host of {node}")
        self.left_s: dict[str, float | None] = left_s
        self.now = 0.0
        self.notices = Notices(lambda: {"a", "b"}, "d", ask=lambda: self.left_s, clock=lambda: self.now)

    def look(self) -> list[Notice]:
        self.now += 10
        return self.notices.look()


def test_a_notice_is_told_once_and_only_of_nodes_that_the_run_sits_on(monkeypatch):
    told = Told(monkeypatch, b=30.0, c=30.0)
    [notice] = told.look()
    assert str(notice) == "node host of b leaves in 30 s: a checkpoint is written"
    assert told.look() == []
    told.left_s = {}
    assert told.look() == []
    told.left_s = {"b": None}
    assert [str(n) for n in told.look()] == ["node host of b leaves soon: a checkpoint is written"]


def test_the_node_of_the_driver_takes_the_run_with_it(monkeypatch):
    [notice] = Told(monkeypatch, d=120.0).look()
    assert notice.is_driver and str(notice) == "node host of d leaves in 120 s: the run ends, after a checkpoint"


def test_notices_are_not_asked_for_at_every_look(monkeypatch):
    told = Told(monkeypatch, a=1.0)
    told.now = 1e6
    assert len(told.notices.look()) == 1
    told.left_s["b"] = 1.0
    assert told.notices.look() == []
