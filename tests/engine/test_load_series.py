"""A pool's loads: what its engines say, and what the pool knows where they say nothing."""

import asyncio
from types import SimpleNamespace

import pytest

from stands import ASK, Stands, run, without_ray
from trd_ray.engine.scheduler_view import SchedulerView
from trd_ray.scale.loads import EngineLoad


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    return lambda replicas: Stands(tmp_path, replicas, max_concurrent=4)


def test_an_engine_without_requests_is_not_asked_and_one_that_tells_nothing_counts_with_its_requests(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].hold("generate")
        s.started[1].failing["load"] = RuntimeError("busy")
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(1)]
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        s.fleet.lives[0].outstanding = 6
        s.started[0].failing["load"] = RuntimeError("busy")
        s.pool.loads.every_s = 60.0
        await s.pool.loads.look(100.0)
        [load] = await s.pool.take_loads()
        assert (load.at_s, load.engines, load.running, load.waiting, load.demand) == (100.0, 2, 4, 2, 1.5)
        assert "load" not in s.started[1].calls and await s.pool.take_loads() == []
        status = await s.pool.status()
        assert (status["decoding"], status["queued"], status["load"]) == (4, 2, 0.75)
        s.started[0].held["generate"].set()
        await asyncio.gather(*asked)

    run(story())


def test_an_engine_that_waits_for_weights_is_no_part_of_the_load(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        await s.pool.forget_weights()
        await s.pool.loads.look(1.0)
        assert s.pool.loads.last.engines == 0 and (await s.pool.status())["load"] == 0.0

    run(story())


def test_the_last_word_of_a_scheduler_is_kept():
    view = SchedulerView()
    assert view(None, 0) is view and view.last == EngineLoad(0, 0, 0.0)
    stats = SimpleNamespace(num_running_reqs=3, num_waiting_reqs=2, kv_cache_usage=0.5)
    view.record(stats, None, mm_cache_stats=None, engine_idx=0)
    view.record(None, None)
    assert view.last == EngineLoad(3, 2, 0.5)
