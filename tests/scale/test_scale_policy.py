"""What a step would have taken with other numbers of engines, and what is decided from that."""

import pytest

from trd_ray.scale.loads import EngineLoad, Moment, PoolLoad, moments
from trd_ray.scale.scale_policy import EngineBounds, ScalePolicy, expected_s, waited_for

WIDE = {"sampler": EngineBounds(1, 8), "refiner": EngineBounds(1, 8)}


def moment(seconds: float, sampler: tuple[float, float], refiner: tuple[float, float]) -> Moment:
    """(engines, demand) of each pool."""
    (s, s_demand), (r, r_demand) = sampler, refiner
    return Moment(seconds, {"sampler": s, "refiner": r}, {"sampler": s_demand, "refiner": r_demand})


def counts(sampler: int, refiner: int) -> dict[str, int]:
    return {"sampler": sampler, "refiner": refiner}


# Loads


def test_an_engine_without_a_queue_is_as_full_as_its_places_or_its_cache_are():
    assert EngineLoad(32, 0, 0.1).demand(128) == 0.25
    assert EngineLoad(32, 0, 0.6).demand(128) == 0.6
    assert EngineLoad(0, 0, 0.0).demand(128) == 0.0


def test_what_waits_would_fill_further_engines():
    assert EngineLoad(128, 64, 0.5).demand(128) == 1.5
    assert EngineLoad(40, 40, 0.99).demand(128) == 2.0  # the cache is full, not the places
    assert EngineLoad(0, 5, 0.0).demand(128) == 1.0  # it has not begun any yet


def test_moments_are_the_times_at_which_every_pool_was_looked_at_and_had_an_engine():
    def load(at_s: float, engines: int, running: int) -> PoolLoad:
        return PoolLoad.of(at_s, [EngineLoad(running, 0, 0.0)] * engines, 10)

    series = {
        "sampler": [load(0.1, 2, 5), load(1.2, 2, 5), load(2.1, 0, 0)],
        "refiner": [load(1.9, 1, 1), load(2.2, 1, 1)],
    }
    [one] = moments(series, 1.0)
    assert (one.seconds, one.engines) == (1.0, counts(2, 1))
    assert one.demand == {"sampler": 1.0, "refiner": 0.1}
    assert moments(series, 1.0, since_s=1.5) == []  # what was before says nothing


# Estimates


def test_a_full_pool_s_time_is_shared_by_more_engines_and_only_by_its_own():
    seen = [moment(60, (2, 6), (2, 0.5)), moment(40, (2, 0.1), (2, 0.2))]
    assert expected_s(seen, counts(2, 2)) == 100
    assert expected_s(seen, counts(4, 2)) == 60 / 2 + 40
    assert expected_s(seen, counts(1, 2)) == 60 * 2 + 40
    assert expected_s(seen, counts(2, 4)) == 100


def test_more_engines_than_the_requests_would_fill_save_nothing_more():
    seen = [moment(60, (2, 3), (2, 0.5))]
    assert expected_s(seen, counts(3, 2)) == expected_s(seen, counts(6, 2)) == 40


def test_a_pool_that_gets_faster_waits_for_the_other_in_the_end():
    seen = [moment(60, (2, 100), (2, 1.9))]  # the refiner is nearly full with what two samplers give it
    assert expected_s(seen, counts(4, 2)) == pytest.approx(60 * (0.05 * 0.5 + 0.95))


def test_fewer_engines_than_the_requests_fill_take_longer_also_where_nobody_waited():
    seen = [moment(60, (4, 3), (2, 0.5))]
    assert expected_s(seen, counts(3, 2)) == 60 and expected_s(seen, counts(2, 2)) == 90


def test_of_two_full_pools_the_one_with_more_work_for_an_engine_is_waited_for():
    seen = [moment(60, (2, 5), (2, 5)), moment(60, (2, 0.0), (2, 5))]
    assert expected_s(seen, counts(2, 3)) == 80 and expected_s(seen, counts(3, 2)) == 120
    assert waited_for(seen, ["sampler", "refiner"]) == {"sampler": 0.5, "refiner": 1.0}


# Decisions


def test_an_engine_moves_from_the_calm_pool_where_nothing_is_free():
    policy = ScalePolicy(WIDE)
    found = policy.after_step([moment(100, (2, 6), (2, 0.4))], counts(2, 2), lambda wanted: sum(wanted.values()) <= 4)
    assert found and found.counts == counts(3, 1)
    assert found.why == "the sampler was full in 100% of the time, and steps should take 33% less"


def test_nothing_moves_where_an_engine_of_the_other_pool_would_have_no_room():
    seen = [moment(100, (2, 6), (2, 0.4))]
    assert ScalePolicy(WIDE).after_step(seen, counts(2, 2), lambda wanted: wanted["sampler"] <= 2) is None


def test_a_free_engine_is_taken_before_a_calm_pool_gives_one():
    policy = ScalePolicy({"sampler": EngineBounds(1, 3), "refiner": EngineBounds(1, 2)})
    found = policy.after_step([moment(100, (2, 6), (2, 1.6))], counts(2, 2))
    assert found and found.counts == counts(3, 2)


def test_nothing_changes_where_little_would_be_saved_or_little_was_seen():
    policy = ScalePolicy(WIDE, gain=0.05, window_s=30)
    assert policy.after_step([moment(4, (2, 6), (2, 0)), moment(96, (2, 1), (2, 1))], counts(2, 2)) is None
    assert policy.after_step([moment(20, (2, 6), (2, 0))], counts(2, 2)) is None
    assert policy.after_step([moment(20, (2, 6), (2, 0))], counts(2, 2)) is not None  # 40 s together
    policy.after_step([moment(20, (2, 6), (2, 0))], counts(2, 2))
    policy.changed()
    assert policy.seen == []


def test_bounds_are_kept_and_no_pool_changes_by_more_than_half_in_one_decision():
    bound = ScalePolicy({"sampler": EngineBounds(1, 2), "refiner": EngineBounds(1, 2)})
    assert bound.after_step([moment(100, (2, 9), (2, 2))], counts(2, 2)) is None
    found = ScalePolicy(WIDE).after_step([moment(100, (4, 99), (4, 0.1))], counts(4, 4))
    assert found and found.counts == counts(6, 4) or found and found.counts["sampler"] == 6


def test_an_engine_that_was_not_needed_for_so_many_steps_is_stopped_and_never_the_last():
    policy = ScalePolicy({"sampler": EngineBounds(1, 4), "refiner": EngineBounds(1, 4)}, calm_steps=3)
    calm = [moment(100, (2, 0.9), (1, 0.9))]
    assert [policy.after_step(calm, counts(2, 1)) for _ in range(2)] == [None, None]
    found = policy.after_step(calm, counts(2, 1))
    assert found and found.counts == counts(1, 1)
    assert all(policy.after_step([moment(100, (1, 0), (1, 0))], counts(1, 1)) is None for _ in range(9))


def test_one_busy_step_begins_the_calm_anew():
    policy = ScalePolicy(WIDE, calm_steps=3)
    calm, busy = [moment(100, (2, 0.9), (1, 0.9))], [moment(100, (2, 2.0), (1, 0.9))]
    assert [policy.after_step(step, counts(2, 1)) for step in (calm, calm, busy, calm, calm)] == [None] * 5


def test_a_pool_that_needs_its_engine_again_keeps_the_next_one_twice_as_long():
    policy = ScalePolicy({"sampler": EngineBounds(1, 2), "refiner": EngineBounds(1, 1)}, calm_steps=2)
    now, stopped, asked = 1, [], 0
    for step in range(40):
        demand = 3.0 if step % 3 == 0 else 0.5
        found = policy.after_step([moment(100, (now, demand), (1, 0.1))], counts(now, 1))
        if found:
            stopped += [step] if found.counts["sampler"] < now else []
            asked += found.counts["sampler"] > now
            now = found.counts["sampler"]
            policy.changed()
    assert len(stopped) <= 3 and asked <= 4


def test_a_pool_outside_of_its_limits_does_not_keep_the_other_from_what_it_needs():
    policy = ScalePolicy({"sampler": EngineBounds(5, 8), "refiner": EngineBounds(1, 8)})
    found = policy.after_step([moment(60, (1, 0.2), (1, 4.0))], counts(1, 1))
    assert found and found.counts == counts(1, 2)
