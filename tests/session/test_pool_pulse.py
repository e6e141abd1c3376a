"""A pool that says nothing is ended so that it starts again; the pools and Ray are stand-ins, the process is real."""

import subprocess
import sys
import time
from itertools import count
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from trd_ray.session import pool_pulse as module
from trd_ray.session.pool_pulse import PoolPulse


@pytest.fixture
def sleeping():
    """(its pid, its end) of a process that is named as told."""
    made = []

    def start(name: str) -> subprocess.Popen:
        made.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", name]))
        while name not in psutil.Process(made[-1].pid).cmdline():  # Popen returns a moment before it has its name
            time.sleep(0.01)
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def pulse_of(monkeypatch: Any, pid: int, answers_when: Any) -> tuple[PoolPulse, list[str]]:
    """One pool that has told its pid, and answers again when it is told to."""
    told: list[str] = []
    news: list[dict] = []
    clock = count(0, 10)
    pools = {"sampler": SimpleNamespace(_actor_id=b"s", status=SimpleNamespace(remote=lambda: "ref"))}
    # Of this module alone: other threads look at the clock too, and so does whoever waits for a process.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: ([], [] if answers_when() else refs))
    monkeypatch.setattr(ray, "get", lambda refs: [{"pid": 1, "news": news}])
    monkeypatch.setattr(module.gcs, "actor_table", lambda actor_id: {})
    pulse = PoolPulse(pools, 60, lambda name, said, facts: told.append(said))
    pulse.pids["sampler"] = pid
    pulse.began, pulse.news = 100.0, news  # type: ignore[attr-defined]
    return pulse, told


def test_a_pool_that_says_nothing_for_the_heartbeat_is_ended_and_asked_again(monkeypatch, sleeping):
    process = sleeping("ray::Pool.status")
    psutil.Process(process.pid).suspend()
    waits: list[None] = []
    pulse, told = pulse_of(monkeypatch, process.pid, lambda: process.poll() is not None)
    assert pulse.statuses(lambda: waits.append(None)) == {"sampler": {"pid": 1, "news": []}}
    assert process.wait(120) == -9 and len(waits) >= 6
    assert told == ["the pool sampler gave no sign of life for 60 s (heartbeat_s)"] and pulse.pids == {"sampler": 1}


def test_a_process_that_has_the_number_of_a_pool_is_left_alone(monkeypatch, sleeping):
    process, asked = sleeping("other"), []
    pulse, told = pulse_of(monkeypatch, process.pid, lambda: asked.append(None) or len(asked) > 20)
    pulse.statuses(lambda: None)
    assert process.poll() is None and told == []


def test_who_waits_for_a_silent_pool_may_give_up(monkeypatch, sleeping):
    pulse, _ = pulse_of(monkeypatch, sleeping("ray::Pool").pid, lambda: False)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pulse.statuses(stop)


def test_what_became_of_engines_is_told_once_and_not_what_was_before_this_run(monkeypatch, sleeping):
    pulse, told = pulse_of(monkeypatch, 1, lambda: True)
    news = pulse.news  # type: ignore[attr-defined]
    rests = {"engine": "sampler-1", "what": "rests", "why": "its node has gone", "seconds": 120.0}
    news += [rests | {"when": 99.0}, rests | {"when": 101.0}]
    for when in (102.0, 103.0):
        pulse.statuses(lambda: None)
        news.append({"engine": "sampler-1", "what": "is up again", "why": "", "when": when})
    pulse.statuses(lambda: None)
    assert told[0] == "engine sampler-1 rests for 120 s: its node has gone"
    assert told[1:] == ["engine sampler-1 is up again"] * 2


def test_a_pool_that_is_stopped_while_its_engines_start_is_ended_too(monkeypatch, sleeping):
    process = sleeping("ray::Pool.start")
    psutil.Process(process.pid).suspend()
    pulse, told = pulse_of(monkeypatch, process.pid, lambda: process.poll() is not None)
    assert pulse.soon(0.5) == {} and process.poll() is None
    for _ in range(10):  # of 10 s each
        pulse.soon(0.5)
    assert process.wait(120) == -9 and len(told) == 1
    assert pulse.soon(0.5) == {"sampler": {"pid": 1, "news": []}} and pulse.asking == {}


def test_a_pool_that_is_stopped_before_it_has_told_its_pid_is_found_by_ray(monkeypatch, sleeping):
    process = sleeping("ray::Pool.status")
    pulse, told = pulse_of(monkeypatch, process.pid, lambda: process.poll() is not None)
    pulse.pids.clear()
    row: dict = {"Pid": process.pid, "State": "RESTARTING", "Timestamp": 0}
    monkeypatch.setattr(module.gcs, "actor_table", lambda actor_id: row)
    for _ in range(20):  # of 10 s each
        pulse.soon(0.5)
    assert process.poll() is None  # it may still start
    psutil.Process(process.pid).suspend()
    row |= {"State": "ALIVE", "Timestamp": time.time() * 1000}
    pulse.soon(0.5)
    assert process.poll() is None  # it has just started, and could not answer yet
    row["Timestamp"] = 0
    while not told:
        pulse.soon(0.5)
    assert process.wait(120) == -9 and len(told) == 1


def test_a_pool_that_is_stopped_while_its_process_starts_is_ended_after_the_heartbeat(monkeypatch, sleeping):
    process = sleeping("ray::IDLE")
    pulse, told = pulse_of(monkeypatch, process.pid, lambda: process.poll() is not None)
    pulse.pids.clear()
    row: dict = {"Pid": 0, "State": "PENDING_CREATION", "Timestamp": 0}
    monkeypatch.setattr(module.gcs, "actor_table", lambda actor_id: row)
    for _ in range(10):  # of 10 s each
        pulse.soon(0.5)
    assert told == []  # Ray has no process for it yet
    row["Pid"] = process.pid
    psutil.Process(process.pid).suspend()
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    pulse.soon(0.5)
    assert process.wait(120) == -9 and len(told) == 1


def test_what_keeps_the_engines_of_a_pool_is_ended_too_when_it_says_nothing(monkeypatch, sleeping):
    process = sleeping("ray::EngineKeeper")
    psutil.Process(process.pid).suspend()
    pulse, told = pulse_of(monkeypatch, 1, lambda: True)
    pings: list[None] = []
    pulse_method = SimpleNamespace(remote=lambda: pings.append(None) or "ping")
    monkeypatch.setattr(module, "keeper_of", lambda pool: SimpleNamespace(_actor_id=b"k", pulse=pulse_method))
    row = {"Pid": process.pid, "State": "ALIVE", "Timestamp": 0}
    monkeypatch.setattr(module.gcs, "actor_table", lambda actor_id: row)

    def wait(refs: list, num_returns: int = 1, timeout: float = 0) -> tuple[list, list]:
        late = refs if refs == ["ping"] and process.poll() is None else []
        return [ref for ref in refs if ref not in late], late

    monkeypatch.setattr(ray, "wait", wait)
    while not told:
        pulse.soon(0.5)
    assert process.wait(120) == -9 and len(pings) == 1
    assert told == ["what keeps the engines of sampler gave no sign of life for 60 s (heartbeat_s): they start again"]
    pulse.soon(0.5)
    assert len(pings) == 2  # the first was answered after all, and it is asked again
