import numpy as np
import pyarrow as pa
import pytest

from trd_ray.errors import RunFailed
from trd_ray.rows import ROLLOUT, to_table
from trd_ray.train import policy as module
from trd_ray.train.policy import Policy
from trd_ray.train.probe import logprob_gap

IDLE = {"needs_weights": False, "restarting": False, "up": 1}


class Engines:
    """What the policy is given of a run: pushes that go wrong as told, and the pools' status."""

    def __init__(self, *problems: str | None, status: dict | None = None):
        self.problems, self.pushed = list(problems), []
        self.status, self.looks = IDLE | (status or {}), 0

    def push(self, version: int) -> str | None:
        self.pushed.append(version)
        return self.problems.pop(0) if self.problems else None

    def look(self) -> dict[str, dict]:
        self.looks += 1
        return {"sampler": self.status}


def policy(engines: Engines, version: int = 0, following=("sampler",), **options) -> Policy:
    return Policy(version, following=following, push=engines.push, look=engines.look, restart_timeout_s=5, **options)


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.0)


def test_every_pool_that_follows_serves_what_is_published():
    engines = Engines()
    p = policy(engines, following=("sampler", "refiner"))
    p.publish(1)
    assert (p.version, p.served, p.serves, engines.pushed) == (1, 1, {"sampler": 1, "refiner": 1}, [1])


def test_a_new_engine_waits_for_the_next_version_where_all_would_stand_still_for_it():
    late = {"needs_weights": True, "lives": [{"state": "serving"}, {"state": "stale"}]}
    alone = {"needs_weights": True, "lives": [{"state": "starting"}, {"state": "stale"}]}
    for status, options, pushed in (
        (late, {"drains": True}, []),
        (late, {"drains": False}, [0]),
        (late, {"drains": True, "offline": True}, [0]),  # no later version is sent
        (alone, {"drains": True}, [0]),
    ):
        engines = Engines(status=status)
        policy(engines, **options).watch()
        assert engines.pushed == pushed


def test_a_push_that_failed_is_tried_again_when_the_engines_are_back():
    engines = Engines("engine sampler-0 died")
    p = policy(engines)
    p.publish(3)
    assert engines.pushed == [3, 3] and engines.looks == 1 and p.served == 3


def test_requests_in_flight_finish_before_each_push_and_a_wait_that_fails_counts_as_one():
    engines, told = Engines("engine sampler-0 died"), []
    waits: list[str | None] = ["requests did not finish", None, None]

    def drain() -> str | None:
        told.append(len(engines.pushed))
        return waits.pop(0)

    p = policy(engines, drain=drain)
    p.publish(3)
    assert told == [0, 0, 1] and engines.pushed == [3, 3] and p.served == 3


def test_three_failures_end_the_run_with_the_last_one_s_words_and_the_pools_serve_what_they_did():
    engines = Engines("one", "two", "three")
    p = policy(engines)
    with pytest.raises(RunFailed, match="could not be given policy version 7: three"):
        p.publish(7)
    assert engines.pushed == [7, 7, 7] and p.version == 7 and p.served == 0


def test_an_engine_that_does_not_come_back_ends_the_run_with_what_broke_it():
    p = policy(Engines("no memory", status={"restarting": True}))
    p.restart_timeout_s = 0
    with pytest.raises(RunFailed, match="did not come back after a failed weight sync: no memory"):
        p.publish(1)


def test_a_push_is_tried_again_without_an_engine_that_is_late_once_another_of_each_pool_is_up(monkeypatch):
    engines = Engines("engine sampler-0 died", status={"restarting": True, "up": 0})
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))

    def one_is_up_later(seconds: float) -> None:
        if engines.looks == 5:
            engines.status = engines.status | {"up": 1}

    monkeypatch.setattr(module.time, "sleep", one_is_up_later)
    p = policy(engines)
    p.restart_timeout_s = 600
    p.publish(3)
    assert engines.pushed == [3, 3] and engines.looks == 6


def test_a_pool_that_does_not_follow_is_not_waited_for():
    engines = Engines("engine refiner-0 died")
    p = policy(engines, following=("refiner",))
    engines.look = lambda: {"sampler": IDLE | {"restarting": True}, "refiner": IDLE}  # type: ignore[method-assign]
    p.look = engines.look
    p.publish(1)
    assert engines.pushed == [1, 1]


def test_a_look_that_raises_ends_the_wait():
    class Stopped(Exception):
        pass

    def look() -> dict:
        raise Stopped

    p = Policy(0, following=["sampler"], push=Engines("x").push, look=look, restart_timeout_s=5)
    with pytest.raises(Stopped):
        p.publish(1)


def test_offline_pools_keep_the_initial_weights_until_an_evaluation():
    engines = Engines()
    p = policy(engines, offline=True)
    p.publish(1)
    p.publish(2)
    assert (p.version, p.served, engines.pushed) == (2, 0, [])
    p.catch_up()
    p.catch_up()
    assert (p.served, engines.pushed) == (2, [2])


def test_engines_that_restarted_get_the_weights_again_and_others_do_not():
    engines = Engines()
    p = policy(engines, version=4)
    p.watch()
    assert engines.pushed == []
    engines.status = IDLE | {"needs_weights": True}
    p.watch()
    assert engines.pushed == [4]


def test_without_pools_there_is_no_one_to_tell():
    engines = Engines()
    p = policy(engines, following=())
    p.publish(5)
    assert (p.version, p.served, engines.pushed) == (5, 0, [])


def rows(*sampled: tuple[int, list[int]]) -> pa.Table:
    """Rows of these versions and ids."""
    y_o = [{"ids": ids, "version": version, "logprobs": [-1.0] * len(ids)} for version, ids in sampled]
    table = to_table([{"student_prompt_ids": [1], "y_o": one} for one in y_o], pa.schema([*ROLLOUT]))
    return pa.concat_tables([table[:1], table[1:]])  # as a step's parcels are


def never(sequences):
    raise AssertionError("not asked")


def test_the_gap_of_rows_that_the_learner_s_own_version_sampled_asks_no_engine():
    p = policy(Engines(), version=2)
    asked = []

    def learner(sequences):
        asked.extend((prompt.tolist(), response.tolist()) for prompt, response in sequences)
        return [[-1.5] * len(response) for _, response in sequences]

    step = rows((2, []), (2, [5, 6]), (2, [7]), (2, [8]))
    gap = logprob_gap(step, p, count=2, learner=learner, engine=never)
    assert gap == {"sync/gap_mean": 0.5, "sync/gap_max": 0.5}
    assert asked == [([1], [5, 6]), ([1], [7])]


def test_the_gap_is_the_mean_over_tokens_not_over_rows():
    p = policy(Engines(), version=2)
    gap = logprob_gap(
        rows((2, [5, 6, 7]), (2, [8])), p, count=4, learner=lambda s: [np.full(3, -1.0), [-3.0]], engine=never
    )
    assert gap == {"sync/gap_mean": 0.5, "sync/gap_max": 2.0}


def test_rows_of_older_weights_are_scored_again_if_the_engines_have_the_learner_s_version():
    p = policy(Engines())
    p.publish(3)
    older = rows((2, [5, 6]))
    gap = logprob_gap(older, p, count=4, learner=lambda s: [[-1.0, -2.0]], engine=lambda s: [[-1.0, -2.25]])
    assert gap == {"sync/gap_mean": 0.125, "sync/gap_max": 0.25}


def test_where_nothing_can_be_compared_there_is_no_gap():
    behind = policy(Engines(), version=3)  # the engines still serve 0
    assert logprob_gap(rows((2, [5])), behind, count=4, learner=never, engine=never) == {}
    assert logprob_gap(rows((3, [])), behind, count=4, learner=never, engine=never) == {}
    assert logprob_gap(rows((3, [5])), behind, count=0, learner=never, engine=never) == {}
