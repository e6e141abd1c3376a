"""Seats: nobody sits where another is planned, ranks stay together, and a refusal is about a node, not about sums."""

from collections import Counter

import pytest

from trd_ray.preflight.machines import Machine
from trd_ray.preflight.seats import Need, Seat, Unseated, seated


def nodes(*gpus: int, cpus: float = 64.0, gib: float = 80.0) -> list[Machine]:
    return [Machine(f"node {i}", cpus, gpus=n, gpu_gib=gib) for i, n in enumerate(gpus)]


def needs(**actors: tuple[int, float]) -> list[Need]:
    """name=(how many, GPUs of each)."""
    return [Need(name, i, 1.0, gpus) for name, (count, gpus) in actors.items() for i in range(count)]


def seats(machines: list[Machine], **actors: tuple[int, float]) -> list[Seat]:
    found = seated(needs(**actors), machines)
    assert not isinstance(found, Unseated), found
    assert [(s.actor, s.number) for s in found] == [(n.actor, n.number) for n in needs(**actors)]
    shares: Counter[tuple[int, int]] = Counter()
    for seat in found:
        assert all(gpu < machines[seat.machine].gpus for gpu in seat.gpus)
        for gpu in seat.gpus:
            shares[seat.machine, gpu] += seat.share  # type: ignore[assignment]
    assert all(share <= 1 + 1e-6 for share in shares.values())
    return found


def places(found: list[Seat], actor: str) -> list[tuple[int, tuple[int, ...]]]:
    return [(seat.machine, seat.gpus) for seat in found if seat.actor == actor]


def test_whole_gpus_go_to_engines_first_and_to_ranks_last():
    found = seats(nodes(8), sampler=(5, 1), refiner=(1, 2), learner=(1, 1))
    assert places(found, "sampler") == [(0, (i,)) for i in range(5)]
    assert places(found, "refiner") == [(0, (5, 6))]
    assert places(found, "learner") == [(0, (7,))]


def test_ranks_stay_on_one_node_where_they_fit():
    found = seats(nodes(8, 8), sampler=(8, 1), refiner=(4, 1), learner=(4, 1))
    assert len({machine for machine, _ in places(found, "learner")}) == 1
    found = seats(nodes(2, 4), sampler=(2, 1), learner=(4, 1))
    assert places(found, "learner") == [(1, (i,)) for i in range(4)]


def test_ranks_that_fit_no_node_take_as_few_as_there_can_be_and_are_numbered_node_by_node():
    found = seats(nodes(8, 8), sampler=(4, 1), learner=(12, 1))
    on = [machine for machine, _ in places(found, "learner")]
    assert on == sorted(on, key=on.index) and set(Counter(on).values()) == {8, 4}


def test_a_tensor_parallel_engine_stays_on_one_node():
    found = seats(nodes(3, 3), sampler=(2, 2), learner=(1, 1), refiner=(1, 1))
    assert sorted(machine for machine, _ in places(found, "sampler")) == [0, 1]
    refused = seated(needs(sampler=(2, 4), learner=(2, 1)), nodes(5, 5, 1))
    assert not isinstance(refused, Unseated)
    refused = seated(needs(sampler=(1, 4)), nodes(3, 3))
    assert isinstance(refused, Unseated) and str(refused.need) == "sampler 0"
    assert refused.why == "node 0 has 3 GPUs, 64 CPUs left; node 1 has 3 GPUs, 64 CPUs left"


def test_one_gpu_holds_a_share_of_each():
    found = seats(nodes(1), sampler=(1, 0.3), refiner=(1, 0.3), learner=(1, 0.4))
    assert {(seat.gpus, seat.share) for seat in found} == {((0,), 0.3), ((0,), 0.4)}


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5])
def test_no_two_ranks_and_no_two_samplers_share_a_gpu_though_their_shares_would_fit(share):
    found = seats(nodes(8), sampler=(4, share), learner=(4, share))
    assert places(found, "sampler") == places(found, "learner") == [(0, (i,)) for i in range(4)]


def test_two_engines_of_a_pool_share_a_gpu_only_where_there_is_no_other():
    assert places(seats(nodes(2), sampler=(2, 0.4)), "sampler") == [(0, (0,)), (0, (1,))]
    assert places(seats(nodes(1), sampler=(2, 0.4)), "sampler") == [(0, (0,)), (0, (0,))]
    assert {m for m, _ in places(seats(nodes(1, 1), sampler=(2, 0.4)), "sampler")} == {0, 1}


def test_shares_that_suffice_in_sum_but_on_no_gpu_find_no_seat():
    refused = seated(needs(sampler=(3, 0.6)), nodes(2))
    assert isinstance(refused, Unseated) and "0 GPUs and 0.4 of another and 0.4 of another" in refused.why


def test_a_model_that_needs_much_memory_sits_on_the_large_gpus():
    machines = [*nodes(2, gib=24), *nodes(2, gib=80)]
    asked = [Need("learner", 0, 1, 1, least_gpu_gib=60), *needs(sampler=(3, 1))]
    found = seated(asked, machines)
    assert not isinstance(found, Unseated)
    assert places(found, "learner")[0][0] == 1


def test_host_memory_and_cpus_count_on_each_node():
    machines = [Machine("a", 4, memory_gib=10), Machine("b", 4, memory_gib=10)]
    asked = [Need("sampler", i, 1, 0, memory_gib=6) for i in range(2)]
    found = seated(asked, machines)
    assert not isinstance(found, Unseated) and {seat.machine for seat in found} == {0, 1}
    refused = seated([Need("sampler", 0, 1, 0, memory_gib=12)], machines)
    assert isinstance(refused, Unseated) and "a has 4 CPUs, 10.0 GiB of memory left" in refused.why
    assert not isinstance(seated([Need("sampler", 0, 1, 0, memory_gib=12)], machines, counts_memory=False), Unseated)
