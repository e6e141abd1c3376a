"""The pool's half of a weight update, without Ray: what drains, what the first failure ends, who is started again."""

import asyncio
import time

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stands import ANSWER, ASK, Stands, run, without_ray
from trd_ray.engine import fleet as fleet_module
from trd_ray.engine import receiver
from trd_ray.engine import update as update_module
from trd_ray.engine.fleet import State
from trd_ray.engine.update import EngineFailed


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    monkeypatch.setattr(update_module, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(update_module, "COME_OUT_S", 0.2)
    return lambda replicas=2, in_flight="drain": Stands(tmp_path, replicas, in_flight)


# Draining


def test_a_drain_shuts_the_gate_and_ends_with_the_last_answer(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        let_go = s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        draining = asyncio.create_task(s.pool.drain())
        await asyncio.sleep(0.01)
        late = asyncio.create_task(s.client.generate(ASK))
        await asyncio.sleep(0.05)
        assert not draining.done() and not late.done() and (await s.pool.status())["updating"]
        let_go.set()
        await asyncio.wait_for(draining, 1)
        assert await flying == ANSWER and s.started[0].calls.count("generate") == 1
        await s.update(1)
        assert await late == ANSWER and not (await s.pool.status())["updating"]

    run(story())


def test_a_push_that_fails_before_it_pauses_opens_the_gate_that_a_drain_shut(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        await s.pool.drain()
        asked = asyncio.create_task(s.client.generate(ASK))
        await asyncio.sleep(0.01)
        assert not asked.done()
        await s.pool.abort_weight_update()
        assert await asked == ANSWER and s.states() == [State.SERVING]

    run(story())


def test_a_drain_that_takes_longer_than_a_request_may_says_so_and_opens_the_gate(stands, monkeypatch):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        let_go = s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        monkeypatch.setattr(receiver, "HEALTH_TIMEOUT_S", 0.05 - s.pool.spec.request_timeout_s)
        with pytest.raises(TimeoutError, match="for requests to finish before new weights arrive"):
            await s.pool.drain()
        late = asyncio.create_task(s.client.generate(ASK))
        let_go.set()
        assert await asyncio.gather(flying, late) == [ANSWER, ANSWER]

    run(story())


def test_where_requests_are_kept_nothing_drains(stands):
    async def story() -> None:
        s = stands(1, in_flight="keep")
        await s.pool.start()
        s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        await asyncio.wait_for(s.pool.drain(), 1)
        assert not flying.done() and s.pool._open()
        s.started[0].hold("generate").set()
        await flying

    run(story())


def test_another_run_finds_the_gate_open_that_a_drain_of_the_run_before_shut(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        await s.pool.drain()
        await s.pool.forget_weights()
        await s.update(0)
        assert await s.client.generate(ASK, 0) == ANSWER

    run(story())


def test_a_drain_does_not_wait_for_what_a_dead_engine_holds(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        s.started[0].failing["check_health"] = ActorDiedError()
        await asyncio.wait_for(s.pool.drain(), 1)
        await s.until(lambda: s.states() == [State.SERVING])
        await s.update(1)
        assert await flying == ANSWER and s.pool.restarts == 1

    run(story())


@pytest.mark.parametrize("freed", [True, False])
def test_a_drain_after_a_handshake_that_the_learner_gave_up_does_not_wait_for_an_engine_that_hangs_in_it(stands, freed):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        let_go = s.started[1].hold("init_weight_transfer_engine")
        for method in ["generate", "check_health"]:
            s.started[1].held[method] = let_go  # it hears nothing meanwhile
        joining = asyncio.create_task(s.pool.init_weight_transfer_engine(s.fleet.generation, {"rank_offset": 1}))
        flying = [asyncio.create_task(s.client.generate(ASK)) for _ in range(2)]
        await s.until(lambda: s.fleet.lives[1].outstanding == 1 and flying[0].done() != flying[1].done())
        await s.pool.abort_weight_update()
        if freed:
            let_go.set()
        await asyncio.wait_for(s.pool.drain(), 2)
        assert s.started[1].killed.is_set() is not freed and s.pool.restarts == (0 if freed else 1)
        outcome = (await asyncio.gather(joining, return_exceptions=True))[0]
        assert outcome is None if freed else isinstance(outcome, EngineFailed)
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        await s.update(1)
        assert await asyncio.gather(*flying) == [ANSWER] * 2

    run(story())


# The first that fails


def test_the_first_death_in_a_transfer_is_told_while_the_others_still_wait_in_it(stands):
    async def story() -> None:
        s = stands(3)
        await s.pool.start()
        for stand in s.started[1:]:
            stand.hold("update_weights")  # in a broadcast that never ends
        s.started[0].failing["update_weights"] = ActorDiedError()
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        begin = time.monotonic()
        with pytest.raises(EngineFailed, match="engine p-0, update_weights: ActorDiedError"):
            await s.pool.update_weights(None)
        assert time.monotonic() - begin < 1
        await s.pool.abort_weight_update()
        assert s.pool.restarts == 3 and all(stand.killed.is_set() for stand in s.started[:3])
        await s.until(lambda: s.states() == [State.SERVING] * 3)
        await s.update(1)
        assert await s.client.generate(ASK, 1) == ANSWER

    run(story())


def test_a_death_is_told_before_the_broken_connections_of_its_peers(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["update_weights"] = RuntimeError("connection closed by peer")
        heard = s.started[1].hold("update_weights")
        s.started[1].failing["update_weights"] = ActorDiedError()
        asyncio.get_running_loop().call_later(0.02, heard.set)
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        with pytest.raises(EngineFailed, match="engine p-1, update_weights: ActorDiedError"):
            await s.pool.update_weights(None)

    run(story())


def test_a_connection_that_breaks_in_a_transfer_is_told_before_the_engine_is_asked_whether_it_lives(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["update_weights"] = ActorUnavailableError("connection reset", None)
        for stand in s.started:
            stand.hold("check_health")  # it is in the broadcast, and hears nothing
        s.started[1].hold("update_weights")
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        with pytest.raises(EngineFailed, match="engine p-0, update_weights: ActorUnavailableError"):
            await asyncio.wait_for(s.pool.update_weights(None), 2)
        await s.pool.abort_weight_update()
        assert s.pool.restarts == 2

    run(story())


@pytest.mark.parametrize("freed", [True, False])
def test_an_engine_left_in_a_handshake_comes_out_of_it_or_is_started_again(stands, freed):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["init_weight_transfer_engine"] = ActorDiedError()
        let_go = s.started[1].hold("init_weight_transfer_engine")
        with pytest.raises(EngineFailed, match="engine p-0, init_weight_transfer_engine: ActorDiedError"):
            await s.pool.init_weight_transfer_engine(s.fleet.generation, {"rank_offset": 1})
        if freed:
            let_go.set()
        await asyncio.sleep(0.4)
        assert s.pool.restarts == (1 if freed else 2) and s.started[1].killed.is_set() is not freed
        assert await s.client.generate(ASK) == ANSWER

    run(story())


def test_a_pause_waits_for_every_engine_also_when_one_has_failed(stands):
    """Else an engine could be told to resume before it has paused, and would then stay paused."""

    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["pause"] = RuntimeError("odd")
        let_go = s.started[1].hold("pause")
        pausing = asyncio.create_task(s.pool.pause(s.fleet.generation))
        await asyncio.sleep(0.2)
        assert not pausing.done()
        let_go.set()
        with pytest.raises(EngineFailed, match="p-0, pause"):
            await pausing

    run(story())


def test_an_engine_that_is_killed_while_it_is_left_in_a_call_is_not_started_twice(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["update_weights"] = ActorDiedError()
        s.started[1].hold("update_weights")
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        with pytest.raises(EngineFailed):
            await s.pool.update_weights(None)
        await s.pool.abort_weight_update()
        await asyncio.sleep(0.4)
        assert s.pool.restarts == 2 and len(s.started) == 4 and not s.fleet.failure
        assert fleet_module.DEATH_LIMIT == 2  # the death of p-0 was counted, the others were kills

    run(story())
