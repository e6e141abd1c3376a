"""Clients of a pool, without Ray: what they tell the pool, and what the pool counts whatever becomes of them."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from stands import ANSWER, ASK, Ref, Stands, parts_of, run, without_ray
from trd_ray.engine import client as client_module
from trd_ray.engine.actor import Generation, Request
from trd_ray.engine.client import Client
from trd_ray.engine.fleet import State
from trd_ray.engine.pool import RunEnded, least_loaded


@pytest.fixture
def stands(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    return lambda replicas=2, in_flight="drain": Stands(tmp_path, replicas, in_flight)


def ask(client: Client, times: int = 1, version: int = 0) -> list[asyncio.Task]:
    return [asyncio.create_task(client.generate(ASK, version)) for _ in range(times)]


async def holding(stands: Any, count: int = 1) -> tuple[Stands, list[asyncio.Task]]:
    """A pool whose only engine holds so many requests, and the requests."""
    s = stands(1)
    await s.pool.start()
    s.started[0].hold("generate")
    asked = ask(s.client, count)
    await s.until(lambda: loads(s) == [count])
    return s, asked


def loads(s: Stands) -> list[int]:
    return [life.outstanding for life in s.fleet.lives]


async def figures(s: Stands) -> dict[str, Any]:
    await asyncio.sleep(3 * client_module.TELL_WITHIN_S)
    status = await s.pool.status()
    return {name: status[name] for name in ("running", "waiting", "requests", "tokens")}


# The way of a request


def test_the_pool_sees_no_token_and_no_text_of_a_request_or_of_its_generations(stands, monkeypatch):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        prompt, ids = np.full(500, 77_777, np.int32), np.full(500, 88_888, np.int32)
        generation = Generation(ids, "a text " * 50, "stop", np.full(500, -0.125, np.float32), 0, "e", 0.0, 0.0)
        monkeypatch.setattr("stands.ANSWER", [generation])
        asked = [s.client.generate(Request(prompt, seed=0)) for _ in range(10)]
        assert [g.ids is ids for [g] in await asyncio.gather(*asked)] == [True] * 10
        assert await figures(s) == {"running": 0, "waiting": 0, "requests": 10, "tokens": 5000}
        passed = [arguments for _, arguments in s.near.calls]
        passed += [a._replace(engines=dict.fromkeys(a.engines)) for a in s.near.answers if a is not None]
        through_the_pool = pickle.dumps(passed)
        assert len(through_the_pool) < 2000 and b"a text" not in through_the_pool

    run(story())


def test_requests_that_are_wanted_together_are_admitted_in_one_call_and_over_in_one(stands):
    async def story() -> None:
        s = stands(3)
        await s.pool.start()
        gates = [stand.hold("generate") for stand in s.started]
        asked = ask(s.client, 300)
        await s.until(lambda: sum(loads(s)) == 300)
        assert loads(s) == [100, 100, 100] and s.near.count("admit") == 1
        for gate in gates:
            gate.set()
        assert await asyncio.gather(*asked) == [ANSWER] * 300
        assert await figures(s) == {"running": 0, "waiting": 0, "requests": 300, "tokens": 300}
        assert s.near.count("settle") <= 3 and set(dict(s.near.calls)) == {"admit", "settle"}

    run(story())


def test_the_pool_is_told_once_how_many_wait_however_long_they_take_to_say_so(stands, monkeypatch):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        monkeypatch.setattr(client_module, "TELL_WITHIN_S", 0.0)
        gate = s.started[0].hold("generate")
        asked = ask(s.client, 30)
        await s.until(lambda: loads(s) == [30])
        assert [name for name, *_ in s.near.calls] == ["admit"]
        gate.set()
        assert await asyncio.gather(*asked) == [ANSWER] * 30

    run(story())


def test_an_answer_of_the_pool_that_overtakes_the_one_with_the_engine_s_handle_waits_for_it(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        admit, late = s.pool.admit, asyncio.Event()

        async def first_is_late(who: Any, min_version: int, *more: Any) -> Any:
            admission = await admit(who, min_version, *more)
            if min_version == 0:
                await late.wait()
            return admission

        s.pool.admit = first_is_late
        [first] = ask(s.client)
        await s.until(lambda: loads(s) == [1])
        [second] = ask(s.client, version=-1)
        await s.until(lambda: loads(s) == [2])
        await asyncio.sleep(3 * client_module.ASK_EVERY_S)
        assert not second.done()
        late.set()
        assert await asyncio.gather(first, second) == [ANSWER] * 2
        assert (await figures(s))["running"] == 0

    run(story())


def test_whoever_comes_while_others_wait_at_the_gate_is_counted_and_let_through_with_them(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        asked = []
        for _ in range(20):
            asked += ask(s.client, 1, version=1)
            await asyncio.sleep(0)
        assert (await figures(s))["waiting"] == 20
        await s.update(1)
        assert await asyncio.gather(*asked) == [ANSWER] * 20
        assert s.near.count("admit") == 1 and (await figures(s))["waiting"] == 0

    run(story())


def test_each_request_waits_for_its_own_version(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        [later] = ask(s.client, version=2)
        [soon] = ask(s.client, version=1)
        assert await s.client.generate(ASK) == ANSWER
        await s.update(1)
        assert await soon == ANSWER and not later.done()
        await s.update(2)
        assert await later == ANSWER

    run(story())


def test_handles_of_engines_are_sent_once_to_each_client(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        other = Client(s.near)
        for _ in range(3):
            await asyncio.gather(*ask(s.client, 4), *ask(other, 4))
        sent = [len(admission.engines) for admission in s.near.answers if admission is not None]
        assert sum(sent) == 4 and len(sent) > 4

    run(story())


def test_an_engine_takes_as_many_requests_as_make_the_loads_equal(stands):
    async def story() -> None:
        s = stands(3)
        await s.pool.start()
        lives = s.fleet.lives
        for life, load in zip(lives, (5, 0, 2), strict=True):
            life.outstanding = load
        chosen = least_loaded(lives, 8)
        assert [chosen.count(life) for life in lives] == [0, 5, 3]
        assert least_loaded(lives, 0) == []

    run(story())


# What ends in another way than with an answer


def test_what_the_engine_says_against_a_request_reaches_who_asked_and_is_no_answer(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].failing["generate"] = ValueError("the prompt is too long")
        with pytest.raises(ValueError, match="too long"):
            await s.client.generate(ASK)
        assert await figures(s) == {"running": 0, "waiting": 0, "requests": 0, "tokens": 0}
        assert s.pool.restarts == 0

    run(story())


def test_a_cancelled_request_is_cancelled_in_its_engine_and_counts_no_longer(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].hold("generate")
        first, second = ask(s.client, 2)
        await s.until(lambda: s.started[0].calls.count("generate") == 2)
        first.cancel()
        await s.until(lambda: loads(s) == [1])
        assert s.started[0].calls.count("cancelled") == 1
        s.started[0].hold("generate").set()
        assert await second == ANSWER and (await figures(s))["requests"] == 1

    run(story())


def test_requests_cancelled_at_the_gate_are_neither_counted_nor_given_to_an_engine(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        asked = ask(s.client, 5, version=1)
        await s.until(lambda: sum(s.pool.at_gate.values()) == 5)
        for task in asked[1:]:
            task.cancel()
        assert (await figures(s))["waiting"] == 1
        [late] = ask(s.client, 1, version=1)
        await s.update(1)
        assert await asyncio.gather(asked[0], late) == [ANSWER, ANSWER]
        assert s.started[0].calls.count("generate") == 2 and (await figures(s))["running"] == 0

    run(story())


def test_all_cancelled_at_the_gate_leave_it_to_those_who_come_later(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        [gone] = ask(s.client, 1, version=1)
        await s.until(lambda: bool(s.pool.at_gate))
        gone.cancel()
        assert (await figures(s))["waiting"] == 0
        await s.update(1)
        assert await s.client.generate(ASK, 1) == ANSWER and (await figures(s))["running"] == 0

    run(story())


def test_no_answer_in_time_is_a_death_that_names_the_deadline(stands):
    async def story() -> None:
        s = stands(1)
        s.pool.spec.request_timeout_s = 0.05
        s.prepare = lambda stand: stand.hold("generate")
        await s.pool.start()
        with pytest.raises(Exception, match=r"TimeoutError: no answer within 0 s \(p\.request_timeout_s\)"):
            await s.client.generate(ASK)
        assert s.pool.restarts == 1

    run(story())


def test_failures_that_are_heard_of_after_the_check_that_they_caused_count_once(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        life = s.fleet.lives[0]
        given = [
            s.pool.leases.give(life, s.client.who) for _ in range(10) if s.pool.leases.hear(s.client.who) is not None
        ]
        for lease in given:
            await s.pool.lost(lease, "ActorUnavailableError", True, [])  # one after the other
        assert life.passing == 1 and s.pool.restarts == 0 and loads(s) == [0]

    run(story())


# Clients that come and go


def test_a_client_whose_process_died_leaves_no_load_once_its_actor_speaks_again(stands, monkeypatch):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        gate = s.started[0].hold("generate")
        neighbour = Client(s.near)  # of the same process: nothing to it that the other one is gone
        monkeypatch.setattr(client_module, "_process", lambda: ("another actor", "p"))
        stranger = Client(s.near)
        asked = [*ask(s.client, 3), *ask(neighbour), *ask(stranger), *ask(s.client, 2, version=9)]
        await s.until(lambda: loads(s) == [5] and sum(s.pool.at_gate.values()) == 2)
        monkeypatch.setattr(client_module, "_process", lambda: ("actor", "restarted"))
        asked += ask(Client(s.near))
        await s.until(lambda: loads(s) == [2] and not s.pool.at_gate)  # the stranger's and the new one's
        gate.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (await figures(s))["running"] == 0

    run(story())


def test_an_update_that_drains_does_not_wait_for_a_client_that_is_gone(stands, monkeypatch):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].hold("generate")
        ask(s.client)
        await s.until(lambda: loads(s) == [1])
        updating = asyncio.create_task(s.update(1))
        await s.until(lambda: s.states() == [State.UPDATING])
        monkeypatch.setattr(client_module, "_process", lambda: ("actor", "restarted"))
        [again] = ask(Client(s.near))
        await asyncio.wait_for(updating, 5)
        s.started[0].hold("generate").set()
        assert await again == ANSWER

    run(story())


def test_a_lease_of_which_nobody_says_anything_ends_after_its_deadline(stands, monkeypatch):
    async def story() -> None:
        s = stands(1)
        s.pool.leases.lasts_s = 0.05
        await s.pool.start()
        s.started[0].hold("generate")
        [silent] = ask(s.client)
        await s.until(lambda: loads(s) == [1])
        assert (await s.pool.status())["running"] == 1
        await asyncio.sleep(0.06)
        assert (await s.pool.status())["running"] == 0
        s.started[0].hold("generate").set()
        assert await silent == ANSWER and loads(s) == [0]  # it was only slow: its word counts nothing twice

    run(story())


def test_requests_of_one_moment_share_calls_to_an_engine_only_where_they_may(stands):
    async def story() -> None:
        for together, calls in ((1, 7), (3, 3), (100, 1)):
            s = stands(1)
            await s.pool.start()
            client = Client(s.near, together)
            assert await asyncio.gather(*(client.generate(ASK) for _ in range(7))) == [ANSWER] * 7
            assert s.started[0].calls.count("generate") == calls

    run(story())


def test_a_request_that_is_cancelled_leaves_those_of_its_call(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        s.started[0].hold("generate")
        client = Client(s.near, together=3)
        first, *others = [asyncio.create_task(client.generate(ASK)) for _ in range(3)]
        await s.until(lambda: s.started[0].calls.count("generate") == 1)
        first.cancel()
        await s.until(lambda: first.done())
        assert "cancelled" not in s.started[0].calls
        s.started[0].hold("generate").set()
        assert await asyncio.gather(*others) == [ANSWER] * 2
        await s.until(lambda: loads(s) == [0])

    run(story())


def test_a_death_in_a_shared_call_is_one_death_and_all_are_asked_again(stands):
    async def story() -> None:
        s = stands(2)
        await s.pool.start()
        s.started[0].failing["generate"] = ActorDiedError()
        client = Client(s.near, together=4)
        assert await asyncio.gather(*(client.generate(ASK) for _ in range(8))) == [ANSWER] * 8
        assert s.pool.restarts == 1

    run(story())


def test_leases_of_a_start_that_is_over_do_not_count_for_the_next_one(stands):
    async def story() -> None:
        s, asked = await holding(stands, 3)
        await s.fleet.restart(s.fleet.lives[0])
        assert loads(s) == [0]
        assert await asyncio.gather(*asked) == [ANSWER] * 3
        assert s.pool.restarts == 1 and (await figures(s))["running"] == 0

    run(story())


def test_a_request_of_a_run_that_is_over_is_not_answered_by_the_next_ones_weights(stands):
    async def story() -> None:
        s, [old] = await holding(stands)
        await s.pool.forget_weights()
        s.started[0].killed.set()
        await s.until(lambda: s.states() == [State.STALE])
        with pytest.raises(RunEnded, match="the run that asked pool p has ended"):
            await old
        await s.update(0)
        assert await s.client.generate(ASK) == ANSWER

    run(story())


def test_an_update_of_the_next_run_does_not_wait_for_what_the_run_before_has_asked(stands):
    """Ray Data ends a stage without a word to the pool; `drain` would wait for it as long as a request may take."""

    async def story() -> None:
        s, [old] = await holding(stands)
        await s.pool.forget_weights()
        assert loads(s) == [0]
        await s.update(0)
        s.started[0].hold("generate").set()
        assert await old == ANSWER and loads(s) == [0] and (await figures(s))["requests"] == 0

    run(story())


# A thread without an event loop


def test_close_ends_the_thread_and_what_is_under_way_and_what_was_answered_is_counted(stands):
    async def story() -> None:
        s = stands(1)
        await s.pool.start()
        here = asyncio.get_running_loop()
        near = Across(s.near, here)
        client = Client(near)
        assert await asyncio.wrap_future(client.submit(ASK)) == ANSWER
        s.started[0].hold("generate")
        under_way, at_gate = client.submit(ASK), client.submit(ASK, 5)
        await s.until(lambda: loads(s) == [1] and sum(s.pool.at_gate.values()) == 1)
        thread = client._thread
        await asyncio.to_thread(client.close)
        assert thread is not None and not thread.is_alive()
        assert under_way.cancelled() and at_gate.cancelled()
        await s.until(lambda: loads(s) == [0] and not s.pool.at_gate)
        assert (await figures(s))["requests"] == 1

    run(story())


class Across:
    """The pool, called from another thread than that of its loop."""

    def __init__(self, near: Any, loop: asyncio.AbstractEventLoop):
        self.near, self.loop = near, loop

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> asyncio.Future:
            called = asyncio.run_coroutine_threadsafe(self._call(name, arguments), self.loop)
            answer = asyncio.wrap_future(called) if _in_a_loop() else called
            return parts_of(Ref(_awaited(answer))) if name == "generate" else answer

        return SimpleNamespace(remote=remote)

    async def _call(self, name: str, arguments: tuple) -> Any:
        answer = getattr(self.near, name).remote(*arguments)
        answer = [await part for part in answer] if name == "generate" else await answer
        if name == "admit":
            engines = {start: Across(engine, self.loop) for start, engine in answer.engines.items()}
            return answer._replace(engines=engines)
        return answer


async def _awaited(answer: Any) -> Any:
    return await answer


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
