"""Ray's autoscaler has one request for the whole cluster: what waits for nodes in this driver is added up in it."""

import pytest

from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import Need, seated
from trd_ray.session.nodes_wanted import ASK_EVERY_S, NodesWanted

LIVES, ENGINE, ENGINE_ON_GPU = {"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture
def plan() -> Placement:
    """One sampler lives, and no refiner yet."""
    here = Machine("a", 2.0)
    specs = [ActorSpec("sampler", 1, 2.0, 0.0), ActorSpec("refiner", 1, 1.0, 1.0)]
    found = seated([Need("sampler", 0, 2.0, 0.0)], [here])
    assert isinstance(found, list)
    plans = [ActorPlan(spec, {}, 0.0) for spec in specs]
    return Placement(plans, {}, {}, 80, "gloo", 0.5, machines=(here,), seats=tuple(found))


class Autoscaler:
    """What it was asked for, and the clock of those who ask."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, []

    def wait(self) -> NodesWanted:
        return NodesWanted(lambda bundles: self.asked.append(bundles), lambda: self.now)


def test_two_waits_ask_for_what_both_need_and_the_end_of_one_withdraws_nothing_of_the_other(plan):
    ray = Autoscaler()
    lost, new = ray.wait(), ray.wait()
    lost.ask([("sampler", 1)], plan)
    new.ask([("refiner", 0)], plan)
    lost.over()
    new.over()
    assert ray.asked == [[LIVES, ENGINE], [LIVES, ENGINE, ENGINE_ON_GPU], [LIVES, ENGINE_ON_GPU], []]


def test_a_wait_asks_again_now_and_then_since_another_driver_s_request_replaces_it(plan):
    ray = Autoscaler()
    wait = ray.wait()
    for ray.now in (0.0, ASK_EVERY_S / 2, ASK_EVERY_S):
        wait.ask([("sampler", 1)], plan)
    wait.over()
    assert ray.asked == [[LIVES, ENGINE]] * 2 + [[]]


def test_who_has_a_seat_that_ray_does_not_give_is_asked_for_once(plan):
    ray = Autoscaler()
    wait = ray.wait()
    wait.ask([("sampler", 0)], plan)
    wait.over()
    assert ray.asked == [[LIVES], []]


def test_who_never_had_to_wait_withdraws_nothing(plan):
    ray = Autoscaler()
    ray.wait().over()
    assert ray.asked == []
