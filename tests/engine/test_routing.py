"""Which engine gets a request: the one with its prefix, unless another has too much less to do. No Ray."""

import asyncio
from dataclasses import replace

import pytest

from serving import pool_spec
from stands import ANSWER, ASK, Stands, run, without_ray
from trd_ray.engine.fleet import Life
from trd_ray.engine.routing import SLACK, Routing


@pytest.fixture
def lives(tmp_path):
    spec = pool_spec("p", "model", tmp_path).engine
    return [Life(replace(spec, name=f"p-{i}", start_id=f"start {i}")) for i in range(4)]


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    return lambda replicas=2: Stands(tmp_path, replicas)


def names(chosen: list[Life]) -> list[str]:
    return [life.spec.name for life in chosen]


def test_requests_of_one_prefix_go_to_one_engine_and_others_to_the_least_loaded(lives):
    routing = Routing()
    assert names(routing.choose(lives, [7, 7, 7, None, 8, 8])) == ["p-0", "p-0", "p-0", "p-1", "p-2", "p-2"]
    assert names(routing.choose(lives, [8, 7])) == ["p-2", "p-0"]  # also where they come later


def test_an_engine_that_is_busier_by_more_than_the_slack_is_left_for_another_that_is_then_preferred(lives):
    routing = Routing()
    routing.choose(lives, [7])
    lives[0].outstanding = SLACK
    assert names(routing.choose(lives, [7])) == ["p-0"]
    lives[0].outstanding = SLACK + 1
    assert names(routing.choose(lives, [7])) == ["p-1"]
    lives[0].outstanding = 0
    assert names(routing.choose(lives, [7])) == ["p-1"]


def test_many_prefixes_leave_the_loads_as_equal_as_the_slack(lives):
    chosen = Routing().choose(lives, [problem for problem in range(100) for _ in range(8)])
    loads = [chosen.count(life) for life in lives]
    assert max(loads) - min(loads) <= max(SLACK, min(loads) / 8) + 1
    together = sum(len({id(life) for life in chosen[8 * i : 8 * i + 8]}) == 1 for i in range(100))
    assert together > 90


def test_one_prefix_of_all_is_shared_out_like_none(lives):
    chosen = Routing().choose(lives, [7] * 400)
    loads = [chosen.count(life) for life in lives]
    assert max(loads) - min(loads) <= max(SLACK, min(loads) / 8) + 1


def test_an_engine_that_was_started_again_or_is_not_open_has_no_prefix(lives):
    routing = Routing()
    routing.choose(lives, [7])
    assert names(routing.choose(lives[1:], [7])) == ["p-1"]
    lives[1].spec = replace(lives[1].spec, start_id="another start")
    assert names(routing.choose(lives, [None, 7])) == ["p-0", "p-1"]
    routing.forget()
    assert names(routing.choose(lives, [7])) == ["p-0"]


def test_rollouts_of_a_problem_are_asked_of_one_engine_wherever_they_wait(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        for stand in s.started:
            stand.hold("generate")
        ask = [replace(ASK, prefix=problem) for problem in (1, 2) for _ in range(4)]
        asked = [asyncio.create_task(s.client.generate(one, 1)) for one in ask[:3]]  # wait at the gate
        await s.until(lambda: sum(s.pool.at_gate.values()) == 3)
        asked += [asyncio.create_task(s.client.generate(one, 1)) for one in ask[3:]]  # and are told of later
        await s.until(lambda: sum(s.pool.at_gate.values()) == 8)
        await s.update(1)
        await s.until(lambda: [life.outstanding for life in s.fleet.lives] == [4, 4])
        requests = [[request.prefix for request in stand.asked] for stand in s.started]
        assert sorted(requests) == [[1] * 4, [2] * 4]
        for stand in s.started:
            stand.hold("generate").set()
        assert await asyncio.gather(*asked) == [ANSWER] * 8
        assert not s.client._prefixes and not s.pool.prefixes

    run(story())
