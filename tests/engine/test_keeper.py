"""A pool's process dies and the next one goes on with its engines, without Ray: what it remembers and what it asks."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from serving import pool_spec
from stands import ANSWER, ASK, Near, Ref, Stand, run, without_ray
from trd_ray.engine import deaths as deaths_module
from trd_ray.engine import pool as pool_module
from trd_ray.engine.actor import Condition
from trd_ray.engine.client import Client
from trd_ray.engine.fleet import PoolFailed, State
from trd_ray.engine.phases import Phase
from trd_ray.engine.pool import Pool, RunEnded
from trd_ray.engine.reservation import Place
from trd_ray.engine.resting import DROPPED


class Keeping:
    """An EngineKeeper in this process, whose engines are stand-ins."""

    def __init__(self) -> None:
        self.started: list[Stand] = []
        self.made: dict[str, Any] = {}
        self.noted: Any = None
        self.prepare: Any = lambda stand: None
        self.make = SimpleNamespace(remote=lambda *arguments: Ref(self._make(*arguments)))
        self.note = SimpleNamespace(remote=lambda noted: setattr(self, "noted", noted))
        self.recall = SimpleNamespace(remote=lambda: (self.noted, dict(self.made)))
        self.died = False
        self.has_died = SimpleNamespace(remote=lambda: self.died)

    async def _make(self, spec: Any, options: dict[str, Any]) -> Stand:
        self.started.append(stand := Stand(spec.name))
        self.made[spec.name] = spec, stand
        self.prepare(stand)
        return stand


class Process:
    """A pool with a keeper, as one process after the other."""

    def __init__(self, tmp_path: Any, replicas: int):
        self.keeper = Keeping()
        self.spec = pool_spec("p", "model", tmp_path, replicas=replicas)
        self.near = Near(Pool(self.spec, self.keeper))
        self.client = Client(self.near)

    @property
    def pool(self) -> Pool:
        return self.near.pool

    def dies(self) -> None:
        """All that the process does ends; the clients' handle leads to the next process."""
        before = self.pool
        for task in before.fleet._watches:
            task.cancel()
        before.fleet.watch = lambda watching: watching.close()  # type: ignore[method-assign]
        self.near.pool = Pool(self.spec, self.keeper)

    def states(self) -> list[State]:
        return [life.state for life in self.pool.fleet.lives]

    async def settled(self) -> None:
        async with asyncio.timeout(120):
            while State.STARTING in self.states():
                await asyncio.sleep(0.001)

    async def update(self, version: int) -> None:
        await self.pool.pause(self.pool.fleet.generation)
        await self.pool.start_weight_update()
        await self.pool.update_weights(None)
        await self.pool.finish_weight_update(version)
        for stand in self.keeper.started:
            stand.condition_ = Condition(version, paused=False, mixed=False)


@pytest.fixture
def process(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monkeypatch.setattr(deaths_module, "PULSE_EVERY_S", 0.001)
    monkeypatch.setattr(pool_module, "has_lived_before", lambda: False)
    return lambda replicas=2: Process(tmp_path, replicas)


def test_the_next_process_of_a_pool_serves_on_with_its_engines_and_starts_none(process):
    async def story() -> None:
        p = process()
        await p.pool.start()
        await p.update(3)
        generation = p.pool.fleet.generation
        p.dies()
        await p.settled()
        assert p.states() == [State.SERVING] * 2 and len(p.keeper.started) == 2
        assert p.pool.fleet.version == 3 and p.pool.fleet.generation != generation
        assert await asyncio.gather(*(p.client.generate(ASK, 3) for _ in range(4))) == [ANSWER] * 4
        assert [stand.calls.count("generate") for stand in p.keeper.started] == [2, 2]
        assert not (await p.pool.status())["needs_weights"]

    run(story())


def test_what_was_asked_of_an_engine_is_answered_and_its_lease_ends_no_other(process):
    async def story() -> None:
        p = process(1)
        await p.pool.start()
        let_go = p.keeper.started[0].hold("generate")
        flying = asyncio.create_task(p.client.generate(ASK))
        while not p.pool.fleet.lives[0].outstanding:
            await asyncio.sleep(0.001)
        p.dies()
        await p.settled()
        second = asyncio.create_task(p.client.generate(ASK))
        while not p.pool.fleet.lives[0].outstanding:
            await asyncio.sleep(0.001)
        let_go.set()
        assert await asyncio.gather(flying, second) == [ANSWER] * 2
        while p.pool.fleet.lives[0].outstanding:
            await asyncio.sleep(0.001)
        assert p.pool.fleet.lives[0].outstanding == 0 and p.pool.restarts == 0

    run(story())


def test_an_engine_that_died_with_the_pool_or_was_in_an_update_is_started_again(process):
    async def story() -> None:
        p = process(4)
        await p.pool.start()
        await p.update(1)
        p.keeper.started[0].failing["condition"] = ActorDiedError()
        p.keeper.started[1].condition_ = Condition(1, paused=True, mixed=True)
        p.keeper.started[2].condition_ = Condition(1, paused=True, mixed=False)
        p.keeper.started[3].condition_ = Condition(2, paused=False, mixed=False)  # of an update that nobody noted
        p.dies()
        await p.settled()
        assert p.states() == [State.STALE, State.STALE, State.SERVING, State.STALE]
        assert p.keeper.started[2].calls[-1] == "resume" and p.keeper.started[1].killed.is_set()
        assert len(p.keeper.started) == 6 and p.pool.restarts == 2 and (await p.pool.status())["needs_weights"]
        await p.update(2)
        assert p.states() == [State.SERVING] * 4

    run(story())


def test_a_pool_that_dies_while_it_starts_goes_on_with_what_it_had_begun(process):
    async def story() -> None:
        p = process(2)
        p.keeper.prepare = lambda stand: stand.hold("condition") and stand.hold("start")
        starting = asyncio.create_task(p.pool.start())
        while len(p.keeper.started) < 2:
            await asyncio.sleep(0.001)
        starting.cancel()
        del p.keeper.made["p-1"]  # it was not asked for yet
        p.dies()
        again = asyncio.create_task(p.pool.start())  # Ray makes the call again
        while len(p.keeper.started) < 3:
            await asyncio.sleep(0.001)
        assert not again.done()
        for stand in p.keeper.started:
            for let_go in stand.held.values():
                let_go.set()
        await again
        assert p.states() == [State.SERVING] * 2 and [stand.name for stand in p.keeper.started] == ["p-0", "p-1", "p-1"]

    run(story())


def test_an_engine_that_was_leaving_goes_and_a_new_one_gets_a_new_name(process):
    async def story() -> None:
        p = process(2)
        await p.pool.start()
        p.keeper.started[1].hold("generate")
        held = [asyncio.create_task(p.client.generate(ASK)) for _ in range(2)]
        while p.pool.fleet.lives[1].outstanding != 1:
            await asyncio.sleep(0.001)
        shrinking = asyncio.create_task(p.pool.resize(1))
        while p.pool.fleet.lives[-1].state is not State.LEAVING:
            await asyncio.sleep(0.001)
        await p.pool.fleet.notify()
        shrinking.cancel()
        p.dies()
        await p.settled()
        assert p.states() == [State.SERVING] and p.keeper.started[1].killed.is_set()
        assert await asyncio.gather(*held) == [ANSWER] * 2
        await p.pool.resize(2)
        assert [life.spec.name for life in p.pool.fleet.lives] == ["p-0", "p-2"]

    run(story())


def test_another_run_s_requests_and_weights_stay_another_run_s(process):
    async def story() -> None:
        p = process(1)
        await p.pool.start()
        await p.update(5)
        old = p.pool.run
        await p.pool.forget_weights()
        p.dies()
        await p.settled()
        assert p.states() == [State.STALE] and p.pool.fleet.version == -1 and p.pool.run == old + 1
        with pytest.raises(RunEnded):
            await p.pool.admit(p.client.who, 5, old, 1, [])

    run(story())


def test_who_waits_at_the_gate_of_a_pool_without_any_engine_left_hears_that_it_failed(process):
    async def story() -> None:
        p = process(1)
        await p.pool.start()
        p.keeper.started[0].failing["condition"] = ActorDiedError()
        p.keeper.prepare = lambda stand: stand.failing.update(start=RuntimeError("no memory"))
        p.dies()
        with pytest.raises(PoolFailed, match="engine p-0 failed to start: RuntimeError: no memory"):
            await p.client.generate(ASK)

    run(story())


def test_engines_that_are_taken_over_count_as_restarting_until_they_serve(process):
    """A weight update that the old process was in is tried again once they are all there."""

    async def story() -> None:
        p = process(2)
        await p.pool.start()
        let_go = p.keeper.started[1].hold("condition")
        p.dies()
        assert (await p.pool.status())["restarting"]
        let_go.set()
        await p.settled()
        assert not (await p.pool.status())["restarting"]

    run(story())


def test_an_engine_that_never_had_an_actor_is_not_forgotten(process, monkeypatch):
    async def story() -> None:
        gone = True
        monkeypatch.setattr(Place, "is_there", lambda place: not (gone and place.node_id == "b"))
        monkeypatch.setattr(Pool, "_actor", lambda pool, spec: pool.keeper.make.remote(spec, {}))
        p = process(2)
        p.spec.places = [Place(None, "a"), Place(None, "b")]
        await p.pool.start()
        assert p.states() == [State.SERVING, State.RESTING] and len(p.keeper.started) == 1
        p.dies()
        await p.settled()
        assert p.states() == [State.SERVING, State.RESTING] and (await p.pool.status())["homeless"] == [1]
        gone = False
        await p.pool.seat({1: Place(None, "a")})
        await p.settled()
        assert p.states() == [State.SERVING] * 2 and [stand.name for stand in p.keeper.started] == ["p-0", "p-1"]

    run(story())


def test_a_pool_that_dies_with_what_keeps_its_engines_starts_them_all_and_asks_for_the_weights(process, monkeypatch):
    async def story() -> None:
        p = process(2)
        await p.pool.start()
        await p.update(3)
        p.keeper.made.clear()
        p.keeper.noted, p.keeper.died = None, True
        monkeypatch.setattr(pool_module, "has_lived_before", lambda: True)
        p.dies()
        while p.states() != [State.STALE] * 2:
            await asyncio.sleep(0.001)
        assert (await p.pool.status())["needs_weights"] and len(p.keeper.started) == 4
        await p.update(3)
        assert await p.client.generate(ASK, 3) == ANSWER

    run(story())


def test_a_pool_that_dies_before_it_has_begun_an_engine_starts_as_if_it_had_not(process, monkeypatch):
    """Nobody sends weights to the engines of a comparison whose base is evaluated."""

    async def story() -> None:
        p = process(2)
        monkeypatch.setattr(pool_module, "has_lived_before", lambda: True)
        p.dies()
        assert p.states() == []
        await p.pool.start()  # Ray makes the call again
        assert p.states() == [State.SERVING] * 2 and len(p.keeper.started) == 2

    run(story())


# A pool that has its GPUs in turn with the learner


def test_a_pool_that_dies_at_rest_is_at_rest_in_its_next_process(process):
    async def story() -> None:
        p = process(2)
        p.spec.rests = "drop"
        await p.pool.start()
        await p.pool.rest()
        for stand in p.keeper.started:
            stand.condition_ = Condition(DROPPED, paused=True, mixed=False, rests=True)
        p.keeper.started[1].failing["condition"] = ActorDiedError()
        p.dies()
        await p.pool.rest()  # Ray makes a call again that nobody had answered
        asked = asyncio.create_task(p.client.generate(ASK))
        await asyncio.sleep(0.05)
        assert p.pool.phase is Phase.ASLEEP and not asked.done() and len(p.keeper.started) == 2
        assert p.states() == [State.STALE, State.STARTING] and "resume" not in p.keeper.started[0].calls
        await p.pool.wake(["weights"])
        await p.settled()
        await p.update(1)
        await p.pool.wake(["kv_cache"])
        assert await asked == ANSWER and p.states() == [State.SERVING] * 2 and p.pool.restarts == 1

    run(story())


def test_a_pool_that_dies_in_the_update_after_a_rest_starts_the_engines_that_were_in_it(process):
    async def story() -> None:
        p = process(2)
        p.spec.rests = "keep"
        await p.pool.start()
        await p.pool.rest()
        await p.pool.wake(["weights"])
        p.keeper.started[0].condition_ = Condition(0, paused=True, mixed=True, rests=True)
        p.keeper.started[1].condition_ = Condition(0, paused=True, mixed=False, rests=True)
        p.dies()
        await p.settled()
        assert p.pool.phase is Phase.WAKING and len(p.keeper.started) == 3
        await p.update(1)
        await p.pool.wake(["kv_cache"])
        assert await p.client.generate(ASK, 1) == ANSWER

    run(story())


def test_a_pool_of_which_nobody_knows_any_more_starts_no_engine_before_it_is_told_to_wake(process, monkeypatch):
    """The learner may have the GPUs."""

    async def story() -> None:
        p = process(2)
        p.spec.rests = "drop"
        await p.pool.start()
        p.keeper.made.clear()
        p.keeper.noted, p.keeper.died = None, True
        monkeypatch.setattr(pool_module, "has_lived_before", lambda: True)
        p.dies()
        await asyncio.sleep(0.05)
        assert len(p.keeper.started) == 2 and (await p.pool.status())["phase"] == "asleep"
        await p.pool.wake(["weights", "kv_cache"])
        while p.states() != [State.STALE] * 2:
            await asyncio.sleep(0.001)
        await p.update(3)
        assert await p.client.generate(ASK, 3) == ANSWER

    run(story())


def test_a_pool_of_which_nobody_knows_any_more_starts_its_engines_if_the_run_still_waits_for_them(process, monkeypatch):
    """Nobody tells it to wake then: no engine has rested yet."""

    async def story() -> None:
        p = process(2)
        p.spec.rests = "drop"
        p.keeper.died = True
        monkeypatch.setattr(pool_module, "has_lived_before", lambda: True)
        p.dies()
        assert p.pool.phase is Phase.ASLEEP
        async with asyncio.timeout(60):
            await p.pool.start()  # Ray makes the call again
        assert p.states() == [State.STALE] * 2 and p.pool.phase is Phase.AWAKE

    run(story())
