"""The lives of engines, without Ray: which moves between states there are, who makes them, what the gate then does."""

import asyncio
import re
from dataclasses import replace

import pytest
from ray.exceptions import ActorDiedError

from serving import pool_spec
from stands import ANSWER, ASK, Stands, run, without_ray
from trd_ray.engine import fleet as fleet_module
from trd_ray.engine.fleet import MOVES, UP, Life, PoolFailed, State
from trd_ray.engine.reservation import Place
from trd_ray.engine.update import EngineFailed


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    return lambda replicas=2, in_flight="drain": Stands(tmp_path, replicas, in_flight)


# The table


def test_the_moves_that_are_enforced_are_those_of_the_table_that_is_read():
    rows = re.findall(r"^    ([A-Z ]+) -> ([A-Z]+) ", fleet_module.__doc__ or "", re.M)
    told = {(State[source], State[target]) for sources, target in rows for source in sources.split()}
    assert told == {(source, target) for source, targets in MOVES.items() for target in targets}


@pytest.mark.parametrize("source", State)
@pytest.mark.parametrize("target", State)
def test_a_move_that_is_not_in_the_table_raises_and_leaves_the_state(source, target, tmp_path):
    life = Life(replace(pool_spec("p", "model", tmp_path).engine, name="p-0"), handle=None, state=source)  # type: ignore[arg-type]
    if target in MOVES[source]:
        life.move(target)
        assert life.state is target
    else:
        with pytest.raises(RuntimeError, match=f"engine p-0 cannot go from {source} to {target}"):
            life.move(target)
        assert life.state is source


def test_every_state_is_reached_from_the_first_and_only_leaving_is_the_end():
    reached, ends = {State.STARTING}, {state for state, targets in MOVES.items() if not targets}
    for _ in State:
        reached |= {target for state in reached for target in MOVES[state]}
    assert reached == set(State) and ends == {State.LEAVING}


def test_an_engine_whose_weights_are_not_known_cannot_serve_without_an_update():
    assert State.SERVING not in MOVES[State.STALE] and State.UPDATING not in MOVES[State.STARTING]
    assert set(UP) == {state for state in State if state not in (State.STARTING, State.RESTING, State.LEAVING)}


# Where engines run, and when they start


def test_engines_that_share_a_gpu_start_one_after_another_and_the_others_at_once(stands):
    async def story() -> None:
        s = stands(4)
        s.pool.spec.places += [Place(None, "node", turn) for turn in (0, 0, 1, 2)]
        s.prepare = lambda stand: stand.hold("start")
        starting = asyncio.create_task(s.pool.start())
        for under_way in ([0, 1], [0, 1, 2], [0, 1, 2, 3]):
            await s.until(lambda: sum("start" in stand.calls for stand in s.started) == len(under_way))  # noqa: B023
            await asyncio.sleep(0.01)
            assert [i for i, stand in enumerate(s.started) if "start" in stand.calls] == under_way
            for i in under_way:
                s.started[i].held["start"].set()
        await starting
        assert s.states() == [State.SERVING] * 4

    run(story())


def test_a_restarted_engine_keeps_its_place_and_a_new_one_gets_a_free_one_or_none(stands):
    async def story() -> None:
        s = stands(2)
        s.pool.spec.places += [Place(None, "node") for _ in range(3)]
        await s.pool.start()
        assert [life.spec.place for life in s.fleet.lives] == [0, 1]
        s.started[0].failing["generate"] = ActorDiedError()
        assert await s.client.generate(ASK) == ANSWER
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        assert [life.spec.place for life in s.fleet.lives] == [0, 1]
        await s.pool.resize(1)
        await s.pool.resize(4)
        assert [life.spec.place for life in s.fleet.lives] == [0, 1, 2, None]

    run(story())


# Who moves an engine


def test_an_engine_that_starts_with_the_pools_version_serves_and_a_later_one_is_stale(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        assert s.states() == [State.SERVING]
        await s.update(1)
        assert s.states() == [State.SERVING] and s.fleet.version == 1
        await s.pool.resize(2)
        assert s.states() == [State.SERVING, State.STALE] and (await s.pool.status())["needs_weights"]
        await s.update(2)
        assert s.states() == [State.SERVING, State.SERVING]

    run(story())


def test_a_death_starts_the_engine_again_which_is_stale_once_versions_moved_on(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        await s.update(1)
        s.prepare = lambda stand: stand.hold("start")
        s.started[0].failing["generate"] = ActorDiedError()
        assert await s.client.generate(ASK, 1) == ANSWER
        assert s.states() == [State.STARTING, State.SERVING]
        status = await s.pool.status()
        assert (status["restarting"], status["up"], status["needs_weights"]) == (True, 1, False)
        s.started[2].hold("start").set()
        await s.until(lambda: s.states() == [State.STALE, State.SERVING])
        assert not (await s.pool.status())["restarting"] and s.pool.restarts == 1

    run(story())


def test_a_second_death_without_an_answer_in_between_fails_the_pool(stands):
    async def story() -> None:
        s = stands(1)
        s.prepare = lambda stand: stand.failing.update(generate=ActorDiedError())
        await s.pool.start()
        with pytest.raises(PoolFailed, match="engine p-0 died twice in a row"):
            await s.client.generate(ASK)
        assert len(s.started) == 2

    run(story())


def test_engines_in_an_update_are_given_nothing_until_it_ends(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        await s.pool.pause(s.fleet.generation)
        assert s.states() == [State.UPDATING, State.UPDATING]
        asked = asyncio.create_task(s.client.generate(ASK))
        await asyncio.sleep(0.05)
        assert not asked.done() and (await s.pool.status())["waiting"] == 1
        await s.pool.start_weight_update()
        await s.pool.finish_weight_update(1)
        assert await asked == ANSWER and s.states() == [State.SERVING, State.SERVING]

    run(story())


def test_an_update_given_up_before_weights_were_touched_puts_every_engine_back_where_it_was(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        await s.update(1)
        await s.pool.resize(2)
        before = s.states()
        await s.pool.pause(s.fleet.generation)
        await s.pool.abort_weight_update()
        assert s.states() == before == [State.SERVING, State.STALE]
        assert s.pool.restarts == 0 and all(stand.calls[-1] == "resume" for stand in s.started)
        with pytest.raises(EngineFailed, match="told to start_weight_update in a weight update that was given up"):
            await s.pool.start_weight_update()

    run(story())


def test_an_update_given_up_after_weights_were_touched_lets_no_engine_serve_them(stands):
    async def story() -> None:
        s = stands(3)
        await s.pool.start()
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        s.started[0].failing["update_weights"] = ActorDiedError()
        asked = asyncio.create_task(s.client.generate(ASK))
        with pytest.raises(EngineFailed, match="p-0, update_weights"):
            await s.pool.update_weights(None)
        await s.pool.abort_weight_update()
        assert await asked == ANSWER and s.pool.restarts == 3
        assert all("generate" not in stand.calls for stand in s.started[:3])

    run(story())


def test_mixed_weights_are_not_called_served_even_in_a_pool_that_has_failed(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        await s.fleet.fail("no more")
        await s.pool.abort_weight_update()
        assert s.states() == [State.STALE] and len(s.started) == 1

    run(story())


def test_an_engine_that_comes_up_in_the_middle_of_an_update_is_stale_after_it(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.prepare = lambda stand: stand.hold("start")
        growing = asyncio.create_task(s.pool.resize(2))
        await asyncio.sleep(0)
        await s.pool.pause(s.fleet.generation)
        s.started[1].hold("start").set()
        await growing
        assert s.states() == [State.UPDATING, State.SERVING]  # the gate is closed meanwhile
        assert s.pool._open() == []
        await s.pool.start_weight_update()
        await s.pool.finish_weight_update(1)
        assert s.states() == [State.SERVING, State.STALE]

    run(story())


def test_another_runs_weights_are_forgotten_by_every_engine(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        await s.pool.forget_weights()
        assert s.states() == [State.STALE, State.STALE] and s.pool._open() == []
        await s.update(0)
        assert await s.client.generate(ASK, 0) == ANSWER

    run(story())


# Leaving


def test_a_leaving_engine_answers_what_it_holds_and_is_then_stopped(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        let_go = s.started[1].hold("generate")
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(2)]
        await s.until(lambda: s.fleet.lives[1].outstanding == 1)
        shrinking = asyncio.create_task(s.pool.resize(1))
        await s.until(lambda: s.fleet.lives[-1].state is State.LEAVING)
        assert await s.client.generate(ASK) == ANSWER and s.started[1].calls.count("generate") == 1
        assert not shrinking.done()
        let_go.set()
        await shrinking
        assert await asyncio.gather(*asked) == [ANSWER, ANSWER]
        assert s.started[1].calls[-1] == "shutdown" and s.states() == [State.SERVING]

    run(story())


def test_a_leaving_engine_that_dies_is_not_started_again_and_its_requests_are_asked_of_another(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].hold("generate")
        s.started[1].hold("generate")
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(6)]
        await s.until(lambda: s.fleet.lives[1].outstanding == 3)
        shrinking = asyncio.create_task(s.pool.resize(1))
        await s.until(lambda: s.fleet.lives[-1].state is State.LEAVING)
        s.started[1].killed.set()
        s.started[0].hold("generate").set()
        await shrinking
        assert await asyncio.gather(*asked) == [ANSWER] * 6 and s.pool.restarts == 0 and not s.fleet.failure

    run(story())


@pytest.mark.parametrize("touched", [False, True])
def test_an_engine_that_leaves_in_an_update_never_serves_again_however_it_ends(stands, touched):
    async def story() -> None:
        s = stands(2, in_flight="keep")
        await s.pool.start()
        s.started[1].hold("generate")
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(2)]
        await s.until(lambda: s.fleet.lives[1].outstanding == 1)
        await s.pool.pause(s.fleet.generation)
        shrinking = asyncio.create_task(s.pool.resize(1))
        await s.until(lambda: s.fleet.lives[-1].state is State.LEAVING)
        if touched:
            await s.pool.start_weight_update()
        await s.pool.abort_weight_update()
        assert s.fleet.lives[-1].state is State.LEAVING
        if not touched:
            assert s.started[1].calls[-1] == "resume"  # what it held goes on
            s.started[1].hold("generate").set()
        await shrinking
        assert await asyncio.gather(*asked) == [ANSWER, ANSWER] and len(s.started) == (3 if touched else 2)

    run(story())


def test_an_engine_that_did_not_leave_in_time_is_stopped_by_the_next_resize_and_replaced(stands, monkeypatch):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        let_go = s.started[1].hold("generate")
        asked = [asyncio.create_task(s.client.generate(ASK)) for _ in range(2)]
        await s.until(lambda: s.fleet.lives[1].outstanding == 1)
        with monkeypatch.context() as m:
            m.setattr(fleet_module, "HEALTH_TIMEOUT_S", 0.05 - s.pool.spec.request_timeout_s)
            with pytest.raises(TimeoutError, match="leaving engines to answer what they hold"):
                await s.pool.resize(1)
        assert s.states() == [State.SERVING, State.LEAVING]
        let_go.set()
        await asyncio.gather(*asked)
        await s.pool.resize(2)
        assert s.states() == [State.SERVING, State.SERVING] and len(s.started) == 3
        assert s.started[1].killed.is_set()

    run(story())


def test_an_engine_that_is_sent_away_while_it_starts_is_killed_at_once(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.prepare = lambda stand: (stand.hold("start"), stand.hold("shutdown"))  # it does not hear
        s.started[1].failing["generate"] = ActorDiedError()
        assert await asyncio.gather(*(s.client.generate(ASK) for _ in range(2))) == [ANSWER, ANSWER]
        assert s.states() == [State.SERVING, State.STARTING]
        await s.pool.resize(1)
        assert s.started[2].killed.is_set() and s.states() == [State.SERVING] and not s.fleet.failure

    run(story())


def test_new_engines_that_cannot_start_are_sent_away_and_the_others_serve_on(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.prepare = lambda stand: stand.failing.update(start=RuntimeError("no memory"))
        with pytest.raises(PoolFailed, match="engine p-1 failed to start: RuntimeError: no memory"):
            await s.pool.resize(3)
        assert s.states() == [State.SERVING] and all(stand.killed.is_set() for stand in s.started[1:])
        assert await s.client.generate(ASK) == ANSWER and not s.fleet.failure

    run(story())


# Waiting


def test_a_wait_that_takes_too_long_says_for_what_it_waited(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        with pytest.raises(TimeoutError, match="pool p waited 0 s for an engine to come"):
            await s.fleet.wait_at_most(0.05, "an engine to come", lambda: False)

    run(story())


def test_shutdown_ends_every_wait_and_stops_every_engine(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        asked = asyncio.create_task(s.client.generate(ASK, 7))
        await asyncio.sleep(0.01)
        await s.pool.shutdown()
        with pytest.raises(PoolFailed, match="the pool was shut down"):
            await asked
        assert all(stand.killed.is_set() and stand.calls[-1] == "shutdown" for stand in s.started)

    run(story())
