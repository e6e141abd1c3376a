"""A silence is told once, with its end, and only while the run is to be watched. The clock and the beats are ours."""

import os

from trd_ray.session.silence import Silence

WATCHED = {"heartbeat_s": 60, "directory": "/runs/mine"}


def told(*looks: tuple[float, float, dict]) -> list[str]:
    """What is said at (time of the last beat, now, the run's words)."""
    heard: list[str] = []
    silence = Silence(os.getpid(), tell=lambda directory, text: heard.append(text))
    for look in looks:
        silence.look(*look)
    return heard


def test_a_run_that_beats_is_said_nothing_of():
    assert told(*[(beat, beat + 0.5, WATCHED) for beat in range(0, 300, 50)]) == []


def test_a_silence_is_told_once_and_so_is_its_end():
    first, last = told(*[(7, now, WATCHED) for now in range(201)], (8, 201, WATCHED), (9, 202, WATCHED))
    assert first.startswith("the process that leads the run has not been heard of for 60 s (heartbeat_s): it hangs")
    assert last == "the run goes on, 201 s after it was last heard of"


def test_before_a_run_says_that_it_is_watched_and_after_it_has_ended_silence_is_no_news():
    over = WATCHED | {"heartbeat_s": None}
    assert told(*[(7, now, {}) for now in range(100)], *[(7, now, WATCHED) for now in range(100, 155)]) == []
    assert told(*[(7, now, WATCHED) for now in range(50)], *[(7, now, over) for now in range(50, 200)]) == []


def test_a_run_that_was_stopped_together_with_who_looks_is_given_its_time():
    before = [(7, now, WATCHED) for now in range(50)]
    assert told(*before, *[(7, now, WATCHED) for now in range(5000, 5009)]) == []
    assert len(told(*before, *[(7, now, WATCHED) for now in range(5000, 5013)])) == 1
