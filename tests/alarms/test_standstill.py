"""A run stands still where nothing has moved for longer than that part of a step takes."""

import pytest
from plausible import run, watcher

from trd_ray.alarms.standstill import Standstill, patience_s
from trd_ray.alarms.watcher import Watcher

ROWS = {"what": "wait", "since": 0.0, "waits_for": "refiner"}


def looks(seconds: range, seen: Watcher, doing=ROWS, shows=lambda now: 0) -> list[tuple[int, str]]:
    """(when, what was said) of a look a second."""
    still = Standstill()
    found = [(now, still.look(shows(now), doing, float(now), seen.history)) for now in seconds]
    return [(now, said) for now, said in found if said]


def test_it_is_said_once_what_is_awaited_and_since_when():
    [(when, said)] = looks(range(3000), run(watcher(), 5))
    assert when == 600 and said == "Nothing has moved for 10 min: rows are awaited from refiner, since 10 min"


def test_it_is_said_again_where_the_run_moved_and_stands_still_once_more():
    told = looks(range(3000), run(watcher(), 5), shows=lambda now: now > 1000)
    assert [when for when, _ in told] == [600, 1601]


def test_rows_or_tokens_that_come_slowly_are_no_standstill():
    assert looks(range(5000), run(watcher(), 5), shows=lambda now: now // 500) == []


@pytest.mark.parametrize("doing", [None, {"what": "pause", "since": 0.0}])
def test_a_rest_that_was_asked_for_and_a_time_without_a_step_are_none(doing):
    assert looks(range(5000), run(watcher(), 5), doing=doing) == []


def test_a_process_that_was_itself_stopped_blames_nobody():
    seen = run(watcher(), 5).history
    still = Standstill()
    for now in (0.0, 1.0, 7200.0, 7201.0):
        assert still.look(0, ROWS, now, seen) is None
    assert [still.look(0, ROWS, 7201.0 + s, seen) is not None for s in range(1, 700)].index(True) == 598


def test_what_a_part_took_before_says_how_long_is_long():
    assert patience_s("train", run(watcher(), 5).history) == 600
    assert patience_s("train", run(watcher(), 5, seconds__train=900.0).history) == 4500
    assert patience_s("train", run(watcher(), 2, seconds__train=1.0).history) == 1800, "the first steps compile"
    assert patience_s("start", run(watcher(), 5).history) == 600
