from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.preflight.actors import ActorSpec
from trd_ray.train.sizing import GroupSize


def sized(wanted: int | None, ranks: int = 2, free_gpus: float = 2.0, now: list[float] | None = None) -> Any:
    asked: list[int] = []

    def seated() -> int | None:
        asked.append(1)
        return wanted

    session: Any = SimpleNamespace(
        ranks_if_seated_now=seated, plan=SimpleNamespace(specs={"learner": ActorSpec("learner", ranks, 1.0, 1.0)})
    )
    clock = now or [0.0]
    made = GroupSize(
        session, ranks=lambda: ranks, monotonic=lambda: clock[0], free=lambda: {"CPU": 99.0, "GPU": free_gpus}
    )
    return made, clock, asked


@pytest.mark.parametrize(
    "wanted, free_gpus, due",
    [
        (None, 9.0, False),  # the seats are as good as others
        (4, 2.0, True),
        (4, 1.0, False),  # another job holds a GPU: the group would end and wait for it
        (2, 0.0, True),  # a node is about to go, and its ranks sit elsewhere
        (1, 0.0, True),
    ],
)
def test_a_group_starts_again_where_that_helps_and_ray_has_what_it_needs(wanted, free_gpus, due):
    size, clock, _ = sized(wanted, free_gpus=free_gpus)
    clock[0] = 31.0
    assert size.due() is due


@pytest.mark.parametrize("wanted, at_once", [(4, False), (2, True), (1, True)])
def test_after_a_larger_group_that_did_not_start_in_time_none_is_tried_for_an_hour(wanted, at_once):
    size, clock, _ = sized(wanted)
    clock[0] = 1800.0
    size.put_off()
    clock[0] += 31.0
    assert size.due() is at_once  # ranks leave a node that is about to go all the same
    clock[0] += 3600.0
    assert size.due()


def test_ray_is_asked_for_its_nodes_now_and_then():
    size, clock, asked = sized(4)
    answers = []
    for now in (1.0, 29.0, 31.0, 40.0, 62.0):
        clock[0] = now
        answers.append(size.due())
    assert answers == [False, False, True, False, True] and len(asked) == 2
