"""Engines that die unseen, or cannot come back: the pool notices, goes on with the others, and tries again. No Ray."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from stands import ANSWER, ASK, Stand, Stands, run, without_ray
from trd_ray.engine import deaths as deaths_module
from trd_ray.engine import fleet as fleet_module
from trd_ray.engine.actor import EngineDied, StartFailed
from trd_ray.engine.fleet import PoolFailed, State
from trd_ray.engine.reservation import Place


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    monkeypatch.setattr(deaths_module, "PULSE_EVERY_S", 0.001)
    monkeypatch.setattr(fleet_module, "REST_S", 0.01)
    return lambda replicas=2, in_flight="drain": Stands(tmp_path, replicas, in_flight)


def fails(method: str, error: Exception):
    return lambda stand: stand.failing.update({method: error})


def heals(stand: Stand) -> None:
    pass


async def rested_once(s: Stands, number: int) -> None:
    await s.until(lambda: any(news["what"] == "rests" for news in s.fleet.news))
    assert s.fleet.news[-1]["engine"] == f"p-{number}"


# Noticed


def test_an_idle_engine_that_dies_is_noticed_and_restarted(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[1].failing["pulse"] = EngineDied("the engine process ended")
        await s.until(lambda: s.pool.restarts == 1)
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        assert s.started[1].killed.is_set() and not s.started[0].killed.is_set()
        assert [(news["engine"], news["what"]) for news in s.fleet.news] == [
            ("p-1", "restarts"),
            ("p-1", "is up again"),
        ]
        assert s.fleet.news[0]["why"] == "EngineDied: the engine process ended"

    run(story())


def test_what_a_dead_engine_held_is_asked_elsewhere_before_it_is_back(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].hold("generate")
        flying = [asyncio.create_task(s.client.generate(ASK)) for _ in range(2)]
        await s.until(lambda: s.fleet.lives[0].outstanding == 1 and any(task.done() for task in flying))
        s.prepare = lambda stand: stand.hold("start")
        s.started[0].failing["pulse"] = ActorDiedError()
        assert await asyncio.gather(*flying) == [ANSWER] * 2
        assert s.states() == [State.STARTING, State.SERVING]

    run(story())


def test_an_engine_that_gives_no_sign_of_life_is_taken_for_dead_after_the_heartbeat(stands):
    async def story() -> None:
        s = stands(1)
        s.pool.spec.heartbeat_s = 0.2
        await s.pool.start()
        s.pool.spec.heartbeat_s = 60.0  # of the next start of it
        s.started[0].hold("pulse")  # it is stopped: its calls wait for ever
        await s.until(lambda: s.pool.restarts == 1)
        assert s.fleet.lives[0].restarts == 1
        assert s.fleet.news[0]["why"] == "TimeoutError: no sign of life for 0.2 s (heartbeat_s)"
        await s.until(lambda: s.states() == [State.SERVING])

    run(story())


@pytest.mark.parametrize("first", ["held", "passing"])
def test_an_engine_that_stops_before_its_first_pulse_is_noticed_like_any_other(stands, first):
    """It answers its start, and nothing after that: nobody has heard its pulse yet, which can take minutes to fail."""

    def stops(stand: Stand) -> None:
        if first == "held":
            stand.hold("pulse")
        else:
            stand.failing["pulse"] = ActorUnavailableError("connection attempt timed out", None)

    async def story() -> None:
        s = stands(1)
        s.prepare = stops
        s.pool.spec.heartbeat_s = 0.2
        await s.pool.start()
        s.prepare = heals
        await s.until(lambda: s.pool.restarts == 1)
        s.pool.spec.heartbeat_s = 60.0
        await s.until(lambda: s.states() == [State.SERVING])

    run(story())


def test_a_vllm_that_is_quiet_for_longer_than_the_heartbeat_is_taken_for_dead_but_not_in_an_update(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        await s.pool.pause(s.fleet.generation)
        s.started[0].quiet_s = 61.0
        asked = s.started[0].pulses
        await s.until(lambda: s.started[0].pulses > asked + 5)
        assert s.pool.restarts == 0
        await s.pool.abort_weight_update()
        await s.until(lambda: s.pool.restarts == 1)
        assert "vLLM neither answered nor worked for 61 s (heartbeat_s)" in s.fleet.news[0]["why"]

    run(story())


def test_an_engine_that_is_stopped_while_it_starts_is_started_once_more(stands):
    async def story() -> None:
        s = stands(1)

        def hangs_once(stand: Stand) -> None:
            if len(s.started) == 1:
                stand.hold("start")
                stand.quiet_s = 61.0

        s.prepare = hangs_once
        await s.pool.start()
        assert len(s.started) == 2 and s.started[0].killed.is_set() and s.states() == [State.SERVING]

    run(story())


def test_a_connection_that_breaks_and_comes_back_is_no_death(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].failing["pulse"] = ActorUnavailableError("connection reset", None)
        asked = s.started[0].pulses
        await s.until(lambda: s.started[0].pulses > asked + 5)
        del s.started[0].failing["pulse"]
        assert await s.client.generate(ASK) == ANSWER and s.pool.restarts == 0

    run(story())


def test_a_connection_that_does_not_come_back_within_the_heartbeat_is_a_death(stands):
    async def story() -> None:
        s = stands(1)
        s.pool.spec.heartbeat_s = 0.05
        await s.pool.start()
        s.pool.spec.heartbeat_s = 60.0
        s.started[0].failing["pulse"] = ActorUnavailableError("connection reset", None)
        await s.until(lambda: s.pool.restarts == 1)

    run(story())


# Given up for a while


def test_an_engine_that_dies_twice_rests_while_the_others_go_on_and_comes_back(stands, monkeypatch):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        monkeypatch.setattr(fleet_module, "REST_S", 60.0)
        s.prepare = fails("generate", ActorDiedError())
        s.started[0].failing["generate"] = ActorDiedError()
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(8)]
        assert await asyncio.gather(*asked) == [ANSWER] * 8
        while s.states() != [State.RESTING, State.SERVING]:
            await asyncio.gather(*(s.client.generate(ASK) for _ in range(4)))
        status = await s.pool.status()
        assert (status["up"], status["resting"], status["restarting"], status["failure"]) == (1, 1, False, None)
        assert s.fleet.lives[0].outstanding == 0 and s.fleet.lives[0].rest_s == 60.0
        assert await asyncio.gather(*(s.client.generate(ASK) for _ in range(8))) == [ANSWER] * 8

    run(story())


def test_a_rest_that_is_over_starts_the_engine_again_and_the_next_one_is_twice_as_long(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.prepare = fails("start", StartFailed("no memory"))
        s.started[1].failing["pulse"] = EngineDied("ended")
        await s.until(lambda: sum(news["what"] == "rests" for news in s.fleet.news) == 3)
        rests = [news["seconds"] for news in s.fleet.news if news["what"] == "rests"]
        assert rests == [0.01, 0.02, 0.04]
        s.prepare = heals
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        assert s.fleet.lives[1].rest_s == 0.04 and s.fleet.lives[1].why == ""
        await asyncio.gather(*(s.client.generate(ASK) for _ in range(4)))
        await s.until(lambda: s.fleet.lives[1].rest_s == 0.0)

    run(story())


def test_an_engine_that_comes_back_from_a_rest_has_no_weights_before_it_is_sent_them(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        await s.update(1)
        s.prepare = fails("start", StartFailed("no memory"))
        s.started[1].failing["pulse"] = EngineDied("ended")
        await s.until(lambda: s.states()[1] is State.RESTING)
        s.prepare = heals
        await s.until(lambda: s.states() == [State.SERVING, State.STALE])
        assert (await s.pool.status())["needs_weights"]

    run(story())


def test_a_pool_whose_engines_would_all_rest_fails_with_what_the_last_one_said(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.prepare = lambda stand: fails("start", StartFailed(f"no memory for {stand.name}"))(stand)
        s.started[0].failing["pulse"] = EngineDied("ended")
        await rested_once(s, 0)
        s.started[1].failing["pulse"] = EngineDied("ended")
        await s.until(lambda: bool(s.fleet.failure))
        assert "failed to start: StartFailed: no memory for p-" in str(s.fleet.failure)
        with pytest.raises(PoolFailed):
            await s.client.generate(ASK)

    run(story())


def test_a_pool_begins_with_those_that_could_start_and_fails_if_none_could(stands):
    async def story(bad: set[str]) -> Stands:
        s = stands(2)
        s.prepare = lambda stand: fails("start", StartFailed("no memory"))(stand) if stand.name in bad else None
        await s.pool.start()
        return s

    async def some() -> None:
        s = await story({"p-0"})
        assert s.states()[1] is State.SERVING and s.states()[0] in (State.RESTING, State.STARTING)
        assert await s.client.generate(ASK) == ANSWER

    async def none() -> None:
        with pytest.raises(PoolFailed, match="engine p-. failed to start: StartFailed: no memory"):
            await story({"p-0", "p-1"})

    run(some())
    run(none())


def test_an_engine_that_is_killed_while_it_starts_is_started_once_more(stands):
    async def story() -> None:
        s = stands(1)
        s.prepare = lambda stand: fails("start", ActorDiedError())(stand) if len(s.started) == 1 else None
        await s.pool.start()
        assert len(s.started) == 2 and s.states() == [State.SERVING]

    run(story())


def test_a_resting_engine_leaves_without_a_word_and_a_shutdown_ends_its_rest(stands, monkeypatch):
    async def story() -> None:
        s = stands(3)
        monkeypatch.setattr(fleet_module, "REST_S", 60.0)
        s.prepare = lambda stand: None if stand.name == "p-0" else fails("start", StartFailed("no memory"))(stand)
        await s.pool.start()
        assert s.states() == [State.SERVING, State.RESTING, State.RESTING]
        await s.pool.resize(2)
        assert s.states() == [State.SERVING, State.RESTING]
        await s.pool.shutdown()
        await s.until(lambda: not s.fleet._watches)

    run(story())


# Whose node has gone


def places(s: Stands) -> None:
    s.pool.spec.places += [Place(None, "node") for _ in range(len(s.pool.spec.places), s.pool.spec.replicas)]


def test_an_engine_whose_node_has_gone_rests_until_it_is_given_another_place(stands):
    async def story() -> None:
        s = stands(2)
        places(s)
        await s.pool.start()
        s.gone.add(1)
        s.started[1].failing["pulse"] = ActorDiedError()
        await s.until(lambda: s.states() == [State.SERVING, State.RESTING])
        status = await s.pool.status()
        assert status["homeless"] == [1] and s.fleet.news[-1]["why"] == "its node has gone"
        assert await s.client.generate(ASK) == ANSWER
        s.gone.clear()
        await s.pool.seat({0: Place(None, "elsewhere"), 1: Place(None, "another")})
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        assert [place.node_id for place in s.pool.spec.places] == ["node", "another"]
        assert (await s.pool.status())["homeless"] == []

    run(story())


def test_a_pool_whose_last_node_has_gone_waits_for_a_place_and_has_not_failed(stands, monkeypatch):
    async def story() -> None:
        s = stands(2)
        places(s)
        await s.pool.start()
        s.gone |= {0, 1}
        for stand in s.started:
            stand.failing["pulse"] = ActorDiedError()
        await s.until(lambda: s.states() == [State.RESTING] * 2)
        asked = asyncio.create_task(s.client.generate(ASK))
        status = await s.pool.status()
        assert (status["failure"], status["up"], status["homeless"]) == (None, 0, [0, 1])
        s.gone.clear()
        await s.pool.seat({0: Place(None, "another")})
        assert await asked == ANSWER and s.states()[1] is State.RESTING

    run(story())


def test_an_engine_that_was_starting_again_on_the_node_that_goes_waits_for_a_place_too(stands):
    """Its first sign is a broken connection: Ray starts it there again before it knows that the node is dead."""

    async def story() -> None:
        s = stands(1)
        places(s)
        await s.pool.start()

        def goes(stand: Stand) -> None:
            stand.failing["start"] = ActorDiedError()
            s.gone.add(0)

        s.prepare = goes
        s.started[0].failing["pulse"] = ActorDiedError()
        await s.until(lambda: s.states() == [State.RESTING])
        status = await s.pool.status()
        assert (status["failure"], status["homeless"]) == (None, [0])
        s.gone.clear()
        s.prepare = heals
        await s.pool.seat({0: Place(None, "another")})
        await s.until(lambda: s.states() == [State.SERVING])

    run(story())


def test_an_engine_without_a_place_goes_wherever_there_is_room_in_the_end(stands, monkeypatch):
    async def story() -> None:
        s = stands(2)
        places(s)
        await s.pool.start()
        monkeypatch.setattr(fleet_module, "SEAT_S", 0.02)
        s.gone.add(1)
        s.started[1].failing["pulse"] = ActorDiedError()
        await s.until(lambda: s.states() == [State.SERVING] * 2 and s.pool.restarts == 2)
        assert [life.spec.place for life in s.fleet.lives] == [0, None]

    run(story())
