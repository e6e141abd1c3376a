"""What the pools of a run are told when engines and learner change turns; Ray and the pools are stand-ins."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from trd_ray.errors import RunFailed
from trd_ray.session.shared_gpus import SharedGpus


class Asked:
    """A call of a pool, under way until it is looked at `looks` times."""

    def __init__(self, call: str, looks: int = 0, error: Exception | None = None):
        self.call, self.looks, self.error = call, looks, error


class Run:
    """A session with a sampler that follows the learner and a refiner that does not."""

    def __init__(self, monkeypatch: Any, started: bool = True, **how: Any):
        self.told: list[str] = []
        self.looked = 0
        self.how = how
        self.session: Any = SimpleNamespace(
            pools={name: self._pool(name) for name in ("sampler", "refiner")}, following=lambda: {"sampler": "student"},
            lender=None, to_start=[] if started else ["sampler", "refiner"], look=self._look,
            start_engines=lambda: self.told.append("start"), wait_until_started=lambda: self.told.append("started"),
        )  # fmt: skip
        self.engines = SharedGpus(self.session)
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", self._get)

    def _pool(self, name: str) -> Any:
        def asked(method: str) -> Any:
            def remote(*arguments: Any) -> Asked:
                self.told.append(" ".join([name, method, *("+".join(tags) for tags in arguments)]))
                return Asked(name, **self.how)

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(rest=asked("rest"), wake=asked("wake"))

    def _look(self) -> None:
        self.looked += 1

    def _wait(self, refs: list[Asked], timeout: float) -> tuple[list[Asked], list[Asked]]:
        done = [ref for ref in refs if ref.looks <= self.looked]
        return done[:1], [ref for ref in refs if ref not in done[:1]]

    def _get(self, ref: Asked) -> None:
        if ref.error:
            raise ref.error


WHOLE_TURN = [
    "sampler rest", "refiner rest", "sampler wake weights", "sampler wake weights+kv_cache",
    "refiner wake weights+kv_cache",
]  # fmt: skip


def told_in_a_turn(run: Run) -> list[str]:
    run.engines.rest()
    run.engines.wake_weights()
    run.engines.wake_keys()
    return run.told


def test_a_turn_tells_all_pools_to_rest_those_that_get_weights_to_wake_for_them_and_then_all(monkeypatch):
    run = Run(monkeypatch)
    assert told_in_a_turn(run) == WHOLE_TURN


def test_a_run_that_borrows_engines_lets_those_rest_too_that_it_does_not_need(monkeypatch):
    run = Run(monkeypatch)
    run.session.lender = SimpleNamespace(pools=run.session.pools)
    run.session.pools = {"sampler": run.session.pools["sampler"]}
    assert told_in_a_turn(run) == WHOLE_TURN


def test_engines_that_were_never_started_start_once_the_learner_has_left_them_the_gpus(monkeypatch):
    run = Run(monkeypatch, started=False)
    run.engines.rest()
    assert run.told == []
    run.engines.wake_weights()
    assert run.told[:2] == ["start", "started"]


def test_the_run_is_looked_at_while_pools_are_awaited(monkeypatch):
    run = Run(monkeypatch, looks=3)
    run.engines.rest()
    assert run.looked == 3


def test_a_pool_that_cannot_ends_the_run_with_its_own_words(monkeypatch):
    why = TimeoutError("pool sampler waited 420 s for requests to be answered and engines to start, before they rest")
    run = Run(monkeypatch, error=RayTaskError("rest", "trace", why))
    with pytest.raises(RunFailed, match="the engines of sampler could not rest: TimeoutError: pool sampler waited 420"):
        run.engines.rest()
    assert run.looked == 1


@pytest.mark.parametrize(
    ("phases", "keys", "told"),
    [
        (("asleep", "waking"), True, ["sampler wake weights+kv_cache"]),
        (("asleep", "asleep"), True, ["sampler wake weights+kv_cache", "refiner wake weights+kv_cache"]),
        (("asleep", "asleep"), False, ["sampler wake weights"]),  # the refiner's turn to wake comes after the sync
        (("awake", "awake"), True, []),
    ],
)
def test_only_a_pool_that_takes_itself_for_asleep_is_woken(monkeypatch, phases, keys, told):
    run = Run(monkeypatch)
    statuses = {name: {"phase": phase} for name, phase in zip(("sampler", "refiner"), phases, strict=True)}
    run.engines.wake_those_asleep(statuses, keys=keys)
    assert run.told == told
