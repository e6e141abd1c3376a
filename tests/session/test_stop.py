"""How a run is asked to stop: once in peace, twice at once, and never by what the caller chose to ignore."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trd_ray.session import stop
from trd_ray.session.stop import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_the_shell_s_code_for_it_is_kept(number):
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match=signal.Signals(number).name) as asked:
            signals.check()
        assert asked.value.exit_code == 128 + number and not signals.hurried


def test_one_request_that_two_processes_pass_on_is_one_request(monkeypatch):
    """Ray's job server signals the run and the process above it, which passes the signal on."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM and not signals.hurried
        monkeypatch.setattr(stop, "SAME_REQUEST_S", 0.05)
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.hurried
        os.kill(os.getpid(), signal.SIGINT)  # what is being ended at once is not disturbed


def test_what_the_caller_ignores_stays_ignored_but_sigterm():
    source = """
import os, signal
from trd_ray.session.stop import StopSignals
with StopSignals() as stop:
    stop.install()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.received is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM
print("went on")
"""

    def ignore() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    done = subprocess.run([sys.executable, "-c", source], preexec_fn=ignore, capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr


def test_handlers_of_before_are_there_again_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopSignals():
        pass
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_request_at_the_door_asks_as_a_signal_does_and_in_a_hurry_as_a_second_one():
    with StopSignals() as signals:
        signals.ask("trd stop")
        with pytest.raises(Stopped, match="^trd stop$") as asked:
            signals.check()
        assert asked.value.exit_code == 143
        assert str(Stopped(asked.value.number, "all is kept", asked.value.by)) == "trd stop; all is kept"
        with pytest.raises(KeyboardInterrupt):
            signals.at_once()
        assert signals.hurried
        signals.at_once()  # what is being ended at once is not disturbed
        os.kill(os.getpid(), signal.SIGINT)
