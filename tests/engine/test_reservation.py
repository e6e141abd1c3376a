"""Seats that Ray does not give in the middle of a run: what is held then. Ray's placement groups are stand-ins."""

from typing import Any

import pytest

from trd_ray.engine import reservation as module
from trd_ray.engine.reservation import NODE_LABEL, Reservation, reserve_again
from trd_ray.errors import UserError
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import Need, seated

A, B = (Machine(name, 16, gpus=1, gpu_gib=80.0, node_id=f"id of {name}") for name in "ab")


class Group:
    """Ready at once, unless it is of node b, where somebody else has everything."""

    def __init__(self, bundles: list[dict], strategy: str, bundle_label_selector: list[dict]):
        self.gpus = bundles[0]["GPU"]
        self.node = bundle_label_selector[0][NODE_LABEL]

    def wait(self, seconds: float) -> bool:
        return self.node != B.node_id


@pytest.fixture
def removed(monkeypatch):
    found: list[Any] = []
    monkeypatch.setattr(module, "placement_group", Group)
    monkeypatch.setattr(module, "remove_placement_group", found.append)
    monkeypatch.setattr(module, "_alive", lambda: {A.node_id, B.node_id})
    return found


def planned(machines: list[Machine], **actors: tuple[int, float]) -> Placement:
    """name=(how many, GPUs of each)."""
    plans = [ActorPlan(ActorSpec(name, n, 1.0, gpus), {}, 0.0) for name, (n, gpus) in actors.items()]
    found = seated([Need(name, i, 1.0, gpus) for name, (n, gpus) in actors.items() for i in range(n)], machines)
    assert isinstance(found, list), found
    return Placement(plans, {}, {}, 80, "gloo", 0.5, machines=tuple(machines), seats=tuple(found))


def test_what_was_taken_in_vain_is_given_back_and_the_share_of_a_rank_too(removed):
    before = Reservation(planned([A, B], sampler=(2, 0.3), learner=(1, 0.5)))
    with pytest.raises(UserError, match="node b did not give GPU 0"):
        reserve_again(before, before.plan, -1.0)
    assert sorted((group.node, group.gpus) for group in removed) == [(A.node_id, 0.5), (A.node_id, 0.5), (B.node_id, 1)]
    assert (before.groups, before.fillers) == ({}, [])


def test_a_group_that_was_given_back_is_held_no_longer_also_where_the_rest_is_not_given(removed):
    before = Reservation(planned([A], sampler=(1, 1.0)), {(0, (0,)): "of nobody"})  # type: ignore[dict-item]
    with pytest.raises(UserError):
        reserve_again(before, planned([B], refiner=(1, 1.0)), -1.0)
    assert before.groups == {(0, (0,)): "of nobody"}  # its node is not in the plan, but may be there still
    with pytest.raises(UserError):
        reserve_again(before, planned([B, A], refiner=(1, 1.0)), -1.0)
    assert "of nobody" in removed and before.groups == {}
