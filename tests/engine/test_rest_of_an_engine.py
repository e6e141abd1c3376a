"""What an engine asks of vLLM in a rest and the update after it. vLLM is a stand-in that refuses what vLLM refuses."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray.engine.resting import DROPPED, KV_CACHE, WEIGHTS, Restful

BOTH = [WEIGHTS, KV_CACHE]


class Sleepy:
    """vLLM 0.32's engine core, as far as it sleeps: `EngineCore.sleep`, `wake_up` and `release_kv_cache_memory`."""

    def __init__(self, on_gpu: bool):
        self.on_gpu, self.paused, self.asleep, self.resumed = on_gpu, False, set[str](), 0
        self.calls: list[str] = []

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.calls.append(f"pause {mode}")
        self.paused = True

    async def resume_generation(self) -> None:
        assert not self.asleep, "it would run without its memory"
        self.resumed += self.paused
        self.paused = False

    async def reset_prefix_cache(self, reset_running_requests: bool) -> None: ...

    async def release_kv_cache_memory(self) -> None:
        assert self.on_gpu, "Selective discard is not supported on CPU."
        assert self.paused and not self.asleep, "requires a completed pause, and all executor memory to be resident"
        self.calls.append("release")
        self.asleep.add(KV_CACHE)

    async def sleep(self, level: int, mode: str) -> None:
        assert self.on_gpu and mode == "wait"
        self.calls.append(f"sleep {level}")
        self.asleep |= set(BOTH)

    async def wake_up(self, tags: list[str]) -> None:
        assert self.on_gpu and set(tags) <= self.asleep, "it would wake nothing, and only warn"
        self.calls.append(f"wake {'+'.join(tags)}")
        self.asleep -= set(tags)
        if not self.asleep:
            await self.resume_generation()


class Rests(Restful):
    def __init__(self, on_gpu: bool):
        self.spec, self.llm, self.version = SimpleNamespace(on_gpu=on_gpu), Sleepy(on_gpu), 3

    async def _control(self, call: Any) -> Any:  # type: ignore[override]
        return await call


def told(on_gpu: bool, *calls: tuple[str, Any]) -> Rests:
    engine = Rests(on_gpu)

    async def story() -> None:
        for method, argument in calls:
            await getattr(engine, method)(*([] if argument is None else [argument]))

    asyncio.run(story())
    return engine


UPDATE = [("pause", "drain"), ("resume", None)]
TURN = {how: [("rest", how), ("wake", [WEIGHTS]), *UPDATE, ("wake", BOTH)] for how in ("keep", "drop", "offload")}


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ("keep", ["pause wait", "release", "wake kv_cache"]),
        ("drop", ["pause wait", "sleep 2", "wake weights", "wake kv_cache"]),
        ("offload", ["pause wait", "sleep 1", "wake weights", "wake kv_cache"]),
    ],
)
def test_a_turn_on_a_gpu_asks_what_vllm_allows_and_lets_it_go_on_once(how, calls):
    engine = told(True, *TURN[how])
    assert engine.llm.calls == calls and engine.llm.resumed == 1
    assert not engine.llm.paused and not engine.paused and not engine.asleep
    assert engine.version == (DROPPED if how == "drop" else 3), "weights that went have no version before an update"


@pytest.mark.parametrize("how", ["keep", "drop", "offload"])
def test_on_a_cpu_a_rest_is_a_pause_and_frees_nothing(how):
    engine = told(False, *TURN[how])
    assert engine.llm.calls == ["pause wait"] and engine.llm.resumed == 1 and not engine.llm.paused


def test_a_pool_without_an_update_wakes_at_once():
    engine = told(True, ("rest", "offload"), ("wake", BOTH))
    assert engine.llm.calls[-1] == "wake weights+kv_cache" and engine.llm.resumed == 1


@pytest.mark.parametrize("how", ["keep", "drop"])
def test_an_engine_that_is_half_awake_rests_again(how):
    engine = told(True, ("rest", how), ("wake", [WEIGHTS]), ("rest", how), ("wake", [WEIGHTS]), ("wake", BOTH))
    again = ["sleep 2"] if how == "drop" else []
    assert [call for call in engine.llm.calls if call.startswith(("sleep", "release"))][1:] == again
    assert engine.llm.resumed == 1


def test_a_call_that_is_made_again_asks_vllm_for_nothing():
    once = told(True, *TURN["drop"])
    twice = told(True, *(call for call in TURN["drop"] for _ in range(2)))
    assert twice.llm.calls == once.llm.calls and twice.llm.resumed == 1


def test_an_engine_that_did_not_rest_pauses_for_an_update_as_ever():
    engine = told(True, *UPDATE, ("wake", BOTH))
    assert engine.llm.calls == ["pause wait"] and engine.llm.resumed == 1 and not engine.paused
