"""A pool whose engines have their GPUs in turn with the learner, without Ray: the legal order, deaths in each phase."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from nappers import Gpus, Napper
from stands import ANSWER, ASK, Stands, run, without_ray
from trd_ray.engine import deaths as deaths_module
from trd_ray.engine import fleet as fleet_module
from trd_ray.engine import phases as phases_module
from trd_ray.engine import update as update_module
from trd_ray.engine.actor import Request
from trd_ray.engine.fleet import State
from trd_ray.engine.phases import Phase
from trd_ray.engine.resting import KV_CACHE, WEIGHTS
from trd_ray.engine.update import EngineFailed

OF_BASE = Request([5], seed=0, adapter=False)


class Turned(Stands):
    """A pool of nappers, and a learner that works at its turn."""

    def __init__(self, tmp_path: Any, replicas: int, rests: str, **engine: Any):
        super().__init__(tmp_path, replicas, **engine)
        self.pool.spec.rests = rests  # type: ignore[assignment]
        self.gpus = Gpus()

    def _actor(self, spec: Any) -> Any:
        self.started.append(stand := Napper(spec.name, self.gpus))
        self.prepare(stand)
        return stand

    async def train(self) -> None:
        self.gpus.learner_works = True
        for stand in self.started:
            assert stand.killed.is_set() or KV_CACHE in stand.asleep, (
                f"{stand.name} holds memory that the learner needs"
            )
        await asyncio.sleep(0.01)
        self.gpus.learner_works = False

    async def turn(self, version: int) -> None:
        """From the rows of a step to the gate that is open for the next."""
        await self.pool.rest()
        await self.train()
        await self.pool.wake([WEIGHTS])
        await self.pool.drain()
        await self.update(version)
        await self.pool.wake([KV_CACHE])


@pytest.fixture
def turned(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    monkeypatch.setattr(update_module, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(deaths_module, "PULSE_EVERY_S", 0.001)
    monkeypatch.setattr(fleet_module, "REST_S", 0.01)
    made: list[Turned] = []

    def make(replicas: int = 2, rests: str = "drop", **engine: Any) -> Turned:
        made.append(Turned(tmp_path, replicas, rests, **engine))
        return made[-1]

    yield make
    for one in made:
        assert one.gpus.wrong == []


@pytest.mark.parametrize("rests", ["keep", "drop", "offload"])
def test_a_turn_is_rest_train_wake_weights_update_wake_keys(turned, rests):
    async def story() -> None:
        s = turned(1, rests)
        await s.pool.start()
        assert await s.client.generate(ASK) == ANSWER
        s.gpus.log.clear()
        await s.turn(1)
        assert s.gpus.log == [
            "p-0 rest", "p-0 wake weights", "p-0 pause", "p-0 start_weight_update", "p-0 update_weights",
            "p-0 finish_weight_update", "p-0 resume", "p-0 wake kv_cache",
        ]  # fmt: skip
        assert await s.client.generate(ASK, 1) == ANSWER and s.pool.restarts == 0

    run(story())


@pytest.mark.parametrize("asked", [ASK, OF_BASE], ids=["of the policy", "of the base below the adapters"])
def test_a_request_that_comes_at_rest_waits_at_the_gate_until_the_pool_is_awake(turned, asked):
    async def story() -> None:
        s = turned(2, "keep", transfer_backend="adapter")
        await s.pool.start()
        await s.pool.rest()
        held = [asyncio.create_task(s.client.generate(asked)) for _ in range(5)]
        await s.train()
        assert (await s.pool.status())["waiting"] == 5
        for tags in ([WEIGHTS], [KV_CACHE]):
            assert not any("generate" in stand.calls for stand in s.started)
            await s.pool.wake(tags)
        assert await asyncio.gather(*held) == [ANSWER] * 5

    run(story())


def test_what_is_in_flight_is_answered_before_the_engines_rest_also_where_an_update_would_freeze_it(turned):
    async def story() -> None:
        s = turned(1, "keep")
        s.pool.spec.in_flight = "keep"
        await s.pool.start()
        let_go = s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        resting = asyncio.create_task(s.pool.rest())
        await asyncio.sleep(0.05)
        late = asyncio.create_task(s.client.generate(ASK))
        assert not resting.done() and s.pool.phase is Phase.SETTLING and "rest" not in s.started[0].calls
        let_go.set()
        await resting
        assert await flying == ANSWER and not late.done()
        await s.pool.wake([WEIGHTS, KV_CACHE])
        assert await late == ANSWER

    run(story())


def test_requests_that_are_not_answered_in_time_keep_the_engines_awake_and_the_caller_hears_why(turned, monkeypatch):
    async def story() -> None:
        s = turned(1)
        await s.pool.start()
        let_go = s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        spec = s.pool.spec
        monkeypatch.setattr(phases_module, "HEALTH_TIMEOUT_S", 0.05 - spec.request_timeout_s - spec.start_timeout_s)
        with pytest.raises(TimeoutError, match="pool p waited 0 s for requests to be answered and engines to start"):
            await s.pool.rest()
        let_go.set()
        assert await asyncio.gather(flying, s.client.generate(ASK)) == [ANSWER] * 2

    run(story())


# Deaths


def test_an_engine_that_dies_at_rest_starts_when_the_pool_wakes_and_not_before(turned):
    async def story() -> None:
        s = turned()
        await s.pool.start()
        await s.pool.rest()
        s.started[0].failing["pulse"] = ActorDiedError()
        await s.until(lambda: s.pool.restarts == 1)
        await s.train()
        assert s.states() == [State.STARTING, State.STALE] and len(s.started) == 2
        await s.pool.wake([WEIGHTS])
        await s.until(lambda: s.states() == [State.SERVING, State.STALE])
        await s.update(1)
        await s.pool.wake([KV_CACHE])
        assert s.states() == [State.SERVING] * 2
        assert await asyncio.gather(*(s.client.generate(ASK, 1) for _ in range(4))) == [ANSWER] * 4

    run(story())


def test_an_engine_that_dies_while_requests_are_drained_is_waited_for_and_rests_with_the_others(turned):
    async def story() -> None:
        s = turned()
        await s.pool.start()
        s.started[0].hold("generate")
        flying = asyncio.create_task(s.client.generate(ASK))
        await s.until(lambda: s.fleet.lives[0].outstanding == 1)
        let_go = asyncio.Event()
        s.prepare = lambda stand: stand.held.update(start=let_go)
        resting = asyncio.create_task(s.pool.rest())
        s.started[0].failing["pulse"] = ActorDiedError()
        await s.until(lambda: len(s.started) == 3)
        await asyncio.sleep(0.02)
        assert not resting.done() and not flying.done()
        let_go.set()
        await resting
        assert s.states() == [State.STALE] * 2 and "rest" in s.started[2].calls
        await s.train()
        await s.pool.wake([WEIGHTS])
        await s.update(1)
        await s.pool.wake([KV_CACHE])
        assert await flying == ANSWER

    run(story())


@pytest.mark.parametrize("how", ["dies", "refuses", "hangs"])
def test_an_engine_that_cannot_rest_is_killed_so_that_the_learner_has_its_memory(turned, monkeypatch, how):
    async def story() -> None:
        s = turned()
        await s.pool.start()
        if how == "hangs":
            monkeypatch.setattr(phases_module, "NAP_S", 0.05)
            s.started[0].hold("rest")
        else:
            s.started[0].failing["rest"] = ActorDiedError() if how == "dies" else RuntimeError("memory is in use")
        await s.pool.rest()
        assert s.started[0].killed.is_set() and s.states() == [State.STARTING, State.STALE]
        await s.train()
        monkeypatch.undo()
        without_ray(monkeypatch)
        await s.pool.wake([WEIGHTS])
        await s.update(1)
        await s.pool.wake([KV_CACHE])
        assert await s.client.generate(ASK, 1) == ANSWER

    run(story())


@pytest.mark.parametrize("tag", [WEIGHTS, KV_CACHE])
def test_an_engine_that_dies_while_it_wakes_starts_again_and_the_others_serve(turned, tag):
    async def story() -> None:
        s = turned()
        await s.pool.start()
        await s.pool.rest()
        await s.train()
        s.prepare = lambda stand: stand.hold("start")

        def fails(tags: list[str]) -> None:
            if tags == [tag]:
                s.started[0].failing["wake"] = ActorDiedError()

        for tags in ([WEIGHTS], [KV_CACHE]):
            fails(tags)
            await s.pool.wake(tags)
            if tags == [WEIGHTS]:
                await s.update(1)
        assert s.pool.restarts == 1 and s.states() == [State.STARTING, State.SERVING]
        assert await s.client.generate(ASK, 1) == ANSWER
        s.started[2].hold("start").set()
        await s.until(lambda: s.states() == [State.STALE, State.SERVING])
        assert (await s.pool.status())["needs_weights"]

    run(story())


def test_an_engine_that_dies_in_the_update_after_a_rest_is_told_and_the_next_update_reaches_all(turned):
    async def story() -> None:
        s = turned(2, "keep")
        await s.pool.start()
        await s.pool.rest()
        await s.train()
        await s.pool.wake([WEIGHTS])
        s.started[0].failing["update_weights"] = ActorDiedError()
        with pytest.raises(EngineFailed, match="engine p-0, update_weights: ActorDiedError"):
            await s.update(1)
        await s.pool.abort_weight_update()
        await s.until(lambda: State.STARTING not in s.states())
        await s.update(1)
        await s.pool.wake([KV_CACHE])
        assert s.states() == [State.SERVING] * 2 and s.pool.restarts == 2
        assert await s.client.generate(ASK, 1) == ANSWER

    run(story())


# Weights that went


@pytest.mark.parametrize("rests", ["keep", "drop", "offload"])
def test_an_update_that_is_given_up_before_it_began_starts_those_again_whose_weights_went(turned, rests):
    async def story() -> None:
        s = turned(2, rests)
        await s.pool.start()
        await s.pool.rest()
        await s.train()
        await s.pool.wake([WEIGHTS])
        await s.pool.pause(s.fleet.generation)
        await s.pool.abort_weight_update()
        again = rests == "drop"
        assert [stand.killed.is_set() for stand in s.started[:2]] == [again] * 2
        await s.until(lambda: s.states() == [State.SERVING] * 2)
        await s.pool.wake([KV_CACHE])
        assert s.pool.restarts == 2 * again and await s.client.generate(ASK) == ANSWER

    run(story())


def test_engines_whose_weights_went_serve_nobody_until_they_are_sent_some(turned):
    async def story() -> None:
        s = turned(1)
        await s.pool.start()
        await s.pool.rest()
        await s.pool.wake([WEIGHTS])
        await s.pool.wake([KV_CACHE])
        asked = asyncio.create_task(s.client.generate(ASK))
        await asyncio.sleep(0.02)
        assert not asked.done() and (await s.pool.status())["needs_weights"]
        await s.update(1)
        assert await asked == ANSWER

    run(story())


def test_the_learner_that_is_lost_in_the_sync_gets_the_gpus_back(turned):
    async def story() -> None:
        s = turned()
        await s.pool.start()
        await s.pool.rest()
        await s.train()
        await s.pool.wake([WEIGHTS])
        await s.pool.pause(s.fleet.generation)
        await s.pool.start_weight_update()
        await s.pool.abort_weight_update()  # both were touched, and start again
        await s.pool.rest()
        await s.train()
        assert s.pool.phase is Phase.ASLEEP and s.states() == [State.STALE] * 2
        await s.pool.wake([WEIGHTS])
        await s.update(1)
        await s.pool.wake([KV_CACHE])
        assert await s.client.generate(ASK, 1) == ANSWER

    run(story())


def test_a_call_that_is_made_again_does_no_harm_and_one_out_of_turn_is_refused(turned):
    async def story() -> None:
        s = turned(1)
        await s.pool.start()
        await s.pool.wake([KV_CACHE])
        for _ in range(2):
            await s.pool.rest()
        for tags in ([WEIGHTS], [WEIGHTS]):
            await s.pool.wake(tags)
        await s.update(1)
        for _ in range(2):
            await s.pool.wake([KV_CACHE])
        assert await s.client.generate(ASK, 1) == ANSWER and s.pool.restarts == 0
        s.pool.phase = Phase.SETTLING
        with pytest.raises(RuntimeError, match="pool p was told to wake before it was at rest"):
            await s.pool.wake([WEIGHTS])

    run(story())
