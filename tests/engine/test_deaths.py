"""Every way in which Ray tells that an engine is gone is a death; the pool answers it with a restart. No Ray runs."""

import asyncio
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    WorkerCrashedError,
)

from serving import pool_spec
from stands import Near, Ref, parts_of
from trd_ray.engine import client
from trd_ray.engine.actor import EngineDied, Generation, Request, in_parts, reason
from trd_ray.engine.client import Client
from trd_ray.engine.pool import Pool, PoolFailed

MEMORY = (
    f"Memory on the node (IP: 10.0.0.7, ID: {'ab' * 28}) was 30.5GB used / 31.0GB limit. " + "top 1.0GB python " * 90
)
LOST = ("ff" * 28, None, "")
DEATHS = [
    ActorDiedError(), OutOfMemoryError(MEMORY), NodeDiedError("the node died"), WorkerCrashedError(),
    LocalRayletDiedError(), EngineDied("vLLM ended"),
]  # fmt: skip
PASSING = [ActorUnavailableError("connection reset", None), ObjectLostError(*LOST), OwnerDiedError(*LOST)]
ANSWER = [Generation(np.array([5]), "a", "stop", np.array([-0.1]), 0, "e", 0.0, 0.0)]


class Method:
    def __init__(self, call: Any):
        self.call = call

    def remote(self, *_: Any) -> Any:
        return self.call()


class Generate(Method):
    def remote(self, *_: Any) -> Any:
        return parts_of(Ref(self.call()))


class Handle:
    """An engine whose requests fail as told, one after the other, and then are answered."""

    def __init__(self, failures: list, answers_health: bool):
        self.failures, self.answers_health = failures, answers_health
        self.generate, self.check_health = Generate(self._generate), Method(self._health)
        self.start = self.shutdown = Method(self._done)
        self.pulse = Method(self._well)

    async def _generate(self) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return in_parts([ANSWER])

    async def _health(self) -> None:
        if not self.answers_health:
            raise ActorDiedError()

    async def _done(self) -> None:
        pass

    async def _well(self) -> float:
        return 0.0


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """(answer, pool) after one request to a pool whose one engine fails as told."""
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(client, "_process", lambda: ("actor", "process"))

    def ask(failures: list, answers_health: bool, requests: int = 1) -> tuple[Any, Pool]:
        pool = Pool(pool_spec("p", "model", tmp_path))
        monkeypatch.setattr(pool, "_actor", lambda spec: Handle(failures, answers_health))

        async def run() -> Any:
            await pool.start()
            asking = Client(Near(pool))
            calls = [asking.generate(Request([5], seed=0)) for _ in range(requests)]
            return (await asyncio.wait_for(asyncio.gather(*calls), 20))[0]

        return asyncio.run(run()), pool

    return ask


@pytest.mark.parametrize("death", DEATHS, ids=lambda e: type(e).__name__)
def test_every_death_is_answered_with_a_restart_and_the_request_asked_again(asked, death):
    answer, pool = asked([death], answers_health=True)
    assert answer == ANSWER and pool.restarts == 1


@pytest.mark.parametrize("failure", PASSING, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("alive", [True, False])
def test_after_a_passing_failure_only_an_engine_that_does_not_answer_is_restarted(asked, failure, alive):
    answer, pool = asked([failure], answers_health=alive)
    assert answer == ANSWER and pool.restarts == (0 if alive else 1)


def test_an_engine_whose_failures_do_not_pass_is_restarted(asked):
    answer, pool = asked([PASSING[0]] * 4, answers_health=True)
    assert answer == ANSWER and pool.restarts == 1


def test_many_requests_that_a_broken_connection_fails_together_are_one_failure(asked):
    answer, pool = asked([PASSING[0]] * 50, answers_health=True, requests=50)
    assert answer == ANSWER and pool.restarts == 0


def test_an_engine_that_memory_kills_twice_says_node_and_memory(asked):
    with pytest.raises(PoolFailed, match=r"OutOfMemoryError: Memory on the node \(IP: 10.0.0.7.* 30.5GB used / 31.0GB"):
        asked([OutOfMemoryError(MEMORY)] * 2, answers_health=True)


def test_a_long_reason_keeps_its_beginning_and_its_end():
    told = reason(RuntimeError("The actor died in its creation task, " + "trace " * 500 + "ValueError: no such model"))
    assert told.startswith("RuntimeError: The actor died") and told.endswith("ValueError: no such model")
    assert len(told) < 1000


def test_a_failure_quotes_the_log_of_the_start_that_failed_and_never_an_earlier_ones(tmp_path, monkeypatch):
    log, starts = tmp_path / "p-0.log", []
    log.write_text("an earlier run's words\n")

    def started(self, spec):
        starts.append(spec.start_id)
        if len(starts) < 3:
            log.write_text(log.read_text() + f"start {spec.start_id}\nwords of start {len(starts)}\n")
        return Handle([OutOfMemoryError(MEMORY)] * 2, answers_health=True)

    def failure(pool: Pool) -> str:
        async def run() -> None:
            await pool.start()
            await Client(Near(pool)).generate(Request([5], seed=0))

        with pytest.raises(PoolFailed) as failed:
            asyncio.run(asyncio.wait_for(run(), 20))
        return str(failed.value)

    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(client, "_process", lambda: ("actor", "process"))
    monkeypatch.setattr(Pool, "_actor", started)
    told = failure(Pool(pool_spec("p", "model", tmp_path)))
    assert "words of start 2" in told and "words of start 1" not in told and "earlier run" not in told
    told = failure(Pool(pool_spec("p", "model", tmp_path)))  # which writes nothing
    assert f"wrote nothing to {log}" in told and "words" not in told
    assert "an earlier run's words" in log.read_text()
