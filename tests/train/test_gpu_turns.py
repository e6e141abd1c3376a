"""Whose turn it is on shared GPUs: the legal order, whoever is lost in it; pools, fleet and learner's lives are real.

The state machine alone first; then with a pool whose engines are stand-ins (tests/nappers.py), which write down
whatever is done out of turn, and a learner that dies where it is told to.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from nappers import Gpus, Napper, until
from stands import ANSWER, ASK, Stands, without_ray
from trd_ray.distill.trainer import LearnerLost
from trd_ray.engine import deaths as deaths_module
from trd_ray.engine import fleet as fleet_module
from trd_ray.engine import update as update_module
from trd_ray.engine.resting import KV_CACHE, WEIGHTS
from trd_ray.engine.update import EngineFailed
from trd_ray.train.living import Circumstances, LivingLearner
from trd_ray.train.policy import Policy
from trd_ray.train.turns import Turn, Turns


class Told:
    """Engines and learner that only write down what they are told; what is in `raises` fails once."""

    def __init__(self, **parts: Any):
        self.log: list[str] = []
        self.raises: dict[str, Exception] = {}
        given = {"taken": True, "first": Turn.ENGINES} | parts
        self.turns = Turns(self, lambda: self.do("give"), lambda: self.do("refresh"), self.span, **given)

    def do(self, what: str) -> None:
        if what in self.raises:
            raise self.raises.pop(what)
        self.log.append(what)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.log.append(f"[{name}")
        yield
        self.log.append("]")

    def rest(self) -> None:
        self.do("rest")

    def wake_weights(self) -> None:
        self.do("wake weights")

    def wake_keys(self) -> None:
        self.do("wake keys")

    def wake_those_asleep(self, statuses: Any, *, keys: bool) -> None:
        self.do(f"look {'keys' if keys else 'weights'}")

    def take(self) -> list[str]:
        log, self.log = self.log, []
        return [what for what in log if what[0] not in "[]"]


def test_a_step_is_rest_learn_give_wake_weights_send_wake_keys_in_spans_of_their_own():
    t = Told()
    t.turns.learner()
    t.turns.learner()  # the probe has asked for it already
    t.log.append("train")
    t.turns.engines(lambda: t.log.append("send"))
    assert t.log == [
        "[rest", "rest", "]", "train", "[wake", "give", "]", "[wake", "wake weights", "]", "send", "[wake",
        "wake keys", "]",
    ]  # fmt: skip
    assert t.turns.turn is Turn.ENGINES


def test_where_nobody_takes_turns_nothing_is_done_but_the_sending():
    t = Told(taken=False)
    t.turns.learner()
    t.turns.engines(lambda: t.log.append("send"))
    t.turns.engines()
    t.turns.make_room()
    t.turns.go_on()
    t.turns.look({})
    t.turns.leave()
    assert t.log == ["send"] and t.turns.shown() is None


def test_the_learner_starts_first_and_the_engines_of_another_run_rest_before_it():
    fresh, lent = Told(first=Turn.LEARNER), Told()
    for t in (fresh, lent):
        t.turns.learner()
        t.turns.engines()
    assert fresh.take() == ["give", "wake weights", "refresh", "wake keys"]
    assert lent.take() == ["rest", "give", "wake weights", "refresh", "wake keys"]


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Turn.ENGINES, ["rest", "start", "give", "wake weights", "refresh", "wake keys"]),
        (Turn.LEARNER, ["start"]),
        (Turn.NOBODY, ["start", "give"]),
        (Turn.SENDING, ["rest", "start", "give", "wake weights"]),
    ],
)
@pytest.mark.parametrize("lost_again_at", [None, "start", "give", "wake weights", "refresh", "wake keys"])
def test_a_learner_that_starts_again_has_the_gpus_and_gives_the_turn_back(turn, expected, lost_again_at):
    t = Told(first=turn)
    if lost_again_at in expected:
        t.raises[lost_again_at] = LearnerLost("again")
    for _ in range(2):
        t.turns.make_room()
        assert t.turns.turn is Turn.LEARNER
        with contextlib.suppress(LearnerLost):
            t.do("start")
            t.turns.go_on()
            break
    done = t.take()
    if lost_again_at in expected:
        # A step is noted only once it is done, so what was lost in the middle is done again from there.
        assert done[-1] == expected[-1] and done.count("start") == (1 if lost_again_at == "start" else 2)
    else:
        assert done == expected
    assert t.turns.turn is turn and t.turns.back is None


def test_whoever_goes_out_of_order_is_told():
    t = Told()
    with pytest.raises(RuntimeError, match="it cannot be the turn of sending after that of engines"):
        t.turns._move(Turn.SENDING)


def test_a_pool_that_forgot_that_it_is_awake_is_woken_but_not_in_the_learner_s_turn():
    t = Told()
    t.turns.look({})
    t.turns.learner()
    t.turns.look({})
    t.turns._towards(Turn.SENDING)
    t.turns.look({})
    assert [one for one in t.log if one.startswith("look")] == ["look keys", "look weights"]


def test_engines_that_are_another_s_are_awake_after_a_run_that_ended_at_rest():
    t = Told()
    t.turns.learner()
    t.turns.leave()
    assert t.take() == ["rest", "wake keys"]


def test_engines_that_are_another_s_are_awake_after_a_run_of_which_one_pool_could_not_rest():
    t = Told()
    t.raises["rest"] = TimeoutError()
    with pytest.raises(TimeoutError):
        t.turns.learner()
    t.turns.leave()
    assert t.take() == ["wake keys"]


# With a real pool and the learner's lives


class World:
    """A pool in a thread of its own, a stand-in for the worker group, and the parts of the loop between them."""

    def __init__(self, tmp_path: Any, rests: str, dies: dict[str, int]):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.gpus, self.dies, self.lost, self.up, self.ranks, self.steps = Gpus(), dies, False, True, 1, 0
        self.do(self._make(tmp_path, rests))
        self.spoil: Any = lambda: None  # done at the end of each step's rows
        nothing: Any = lambda *_: None  # noqa: E731
        directory: Any = SimpleNamespace(event=lambda *_, **__: None, resume_point=lambda: None)
        around = Circumstances(9, nothing, lambda _: (1, []), dict, self.release, nothing, nothing)
        self.learner = LivingLearner(self, directory, 0, around)  # type: ignore[arg-type]
        self.policy = Policy(
            0, following=["p"], push=self.learner.sync, look=self.look, restart_timeout_s=60, drains=True
        )
        self.turns = Turns(
            self, self.learner.give_gpu, self.policy.watch, lambda _: contextlib.nullcontext(), taken=True,
            first=Turn.ENGINES,
        )  # fmt: skip
        around.make_room, around.go_on = self.make_room, self.turns.go_on

    async def _make(self, tmp_path: Any, rests: str) -> None:
        self.stands = Stands(tmp_path, 2)
        self.stands.pool.spec.rests = rests  # type: ignore[assignment]
        self.stands.pool._actor = self._engine  # type: ignore[assignment, method-assign]
        await self.stands.pool.start()

    def _engine(self, spec: Any) -> Any:
        self.stands.started.append(stand := Napper(spec.name, self.gpus))
        return stand

    def do(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(60)

    # What the session is to the turns

    def rest(self) -> None:
        self.do(self.stands.pool.rest())

    def wake_weights(self) -> None:
        self.do(self.stands.pool.wake([WEIGHTS]))

    def wake_keys(self) -> None:
        self.do(self.stands.pool.wake([WEIGHTS, KV_CACHE]))

    def wake_those_asleep(self, statuses: Any, *, keys: bool) -> None: ...

    def look(self) -> dict[str, Any]:
        return {"p": self.do(self.stands.pool.status())}

    def release(self) -> None:
        self.do(self.stands.pool.abort_weight_update())

    def make_room(self) -> None:
        self.release()
        self.turns.make_room()

    # What the worker group is to the learner's lives

    @contextlib.contextmanager
    def _works(self, what: str) -> Iterator[None]:
        assert not self.lost
        awake = [stand.name for stand in self.stands.started if not stand.killed.is_set() and not stand.asleep]  # type: ignore[attr-defined]
        self.gpus.require(not awake, f"the learner is at {what} beside {awake}")
        self.gpus.learner_works = True
        try:
            yield
            self._may_die(what)
        finally:
            self.gpus.learner_works = False

    def _may_die(self, what: str) -> None:
        if self.dies.get(what):
            self.dies[what] -= 1
            self.lost = True
            raise LearnerLost(f"lost at {what}")

    def restart(self, **_: Any) -> None:
        assert self.lost
        self.lost = self.up = False

    def wait_until_started(self, _: Any) -> None:
        if self.lost:
            raise LearnerLost("the learner ended")
        if not self.up:
            with self._works("start"):
                self.steps, self.up = 0, True

    def has_ended(self) -> bool:
        with contextlib.suppress(LearnerLost):
            self._may_die("rows")
        return self.lost

    def step(self, examples: Any, number: int) -> Any:
        with self._works("step"):
            self.steps = number

    def give_gpu(self) -> None:
        self._may_die("give")

    def sync(self, version: int) -> str | None:
        assert not self.lost and self.steps == version
        pool = self.stands.pool
        try:
            generation, _ = self.do(pool.receivers())
            self.do(pool.pause(generation))
            self.do(pool.start_weight_update())
            self._may_die("sync")
            self.do(pool.update_weights(None))
            self.do(pool.finish_weight_update(version))
        except EngineFailed as e:
            self.do(pool.abort_weight_update())
            return str(e)
        return None

    def one_step(self, step: int) -> None:
        """As the loop makes it: who waits for rows sends weights to engines whose death was seen after the sync."""
        asked = asyncio.wait_for(self.stands.client.generate(ASK, step), 60)
        rows = asyncio.run_coroutine_threadsafe(asked, self.loop)
        while not concurrent.futures.wait([rows], timeout=0.001).done:
            self.policy.watch()
        assert rows.result() == ANSWER
        self.learner.watch()
        self.turns.learner()
        self.spoil()
        self.learner.step([])
        self.turns.engines(lambda: self.policy.publish(step + 1))


@pytest.fixture
def world(monkeypatch, tmp_path):
    without_ray(monkeypatch)
    monkeypatch.setattr(deaths_module, "PULSE_EVERY_S", 0.001)
    monkeypatch.setattr(fleet_module, "REST_S", 0.01)
    monkeypatch.setattr(update_module, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(update_module, "COME_OUT_S", 0.2)
    monkeypatch.setattr("trd_ray.train.policy.POLL_S", 0.001)
    monkeypatch.setattr(LivingLearner, "_examples", lambda learner, step: [])
    made: list[World] = []

    def make(rests: str, dies: dict[str, int] | None = None) -> World:
        made.append(World(tmp_path, rests, dies or {}))
        return made[-1]

    yield make
    for one in made:
        one.do(one.stands.pool.shutdown())
        one.loop.call_soon_threadsafe(one.loop.stop)
        assert one.gpus.wrong == []


PLACES = ["rows", "step", "give", "sync", "start"]


@pytest.mark.parametrize("rests", ["keep", "drop"])
@pytest.mark.parametrize("place", [None, *PLACES, "several"])
def test_a_learner_that_is_lost_in_either_turn_starts_while_the_engines_rest_and_the_run_goes_on(world, rests, place):
    dies = {"start": 1, "step": 1} if place == "start" else dict.fromkeys(PLACES, 1) if place == "several" else {}
    w = world(rests, dies or ({place: 1} if place else {}))
    for step in range(3):
        w.one_step(step)
    assert not any(w.dies.values()) and w.policy.served == w.steps == 3 and w.turns.turn is Turn.ENGINES
    assert w.learner.restarts == len(dies or ({place} if place else {}))
    assert w.do(w.stands.client.generate(ASK, 3)) == ANSWER
    if place is None:
        assert w.stands.pool.restarts == 0


@pytest.mark.parametrize("rests", ["keep", "drop"])
@pytest.mark.parametrize(
    "method",
    ["rest", "pulse", "wake", "pause", "start_weight_update", "update_weights", "finish_weight_update", "resume"],
)
@pytest.mark.parametrize("all_of_them", [False, True], ids=["one", "all"])
def test_engines_that_die_at_any_point_of_a_turn_are_back_and_the_run_goes_on(world, rests, method, all_of_them):
    w = world(rests)
    w.one_step(0)

    def spoil() -> None:
        for stand in w.stands.started[: 2 if all_of_them else 1]:
            stand.failing[method] = ActorDiedError()

    if method == "rest":
        w.do(w.stands.client.generate(ASK, 1))
        spoil()
    w.spoil = spoil
    w.one_step(1)
    w.spoil = lambda: None
    # Those that were sent a part of the weights are started again with those that died.
    w.do(until(lambda: w.stands.pool.restarts >= (2 if all_of_them else 1)))
    w.one_step(2)
    assert w.policy.served == 3 and w.turns.turn is Turn.ENGINES
    assert w.do(w.stands.client.generate(ASK, 3)) == ANSWER
