"""An actor that is ended is gone, and what it had reserved is free, also where its process is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import ray
from ray._private.internal_api import global_gc

from trd_ray.ending import end, end_process

CONNECTS_S = 20.0  # within which gRPC connects, or the raylet takes the process for one that cannot be reached


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    """A group of its own, with a child, whose title is that of an actor."""
    sleeps = "import time; time.sleep(1000)"
    program = (
        f"import subprocess; subprocess.Popen([{sys.executable!r}, '-c', {sleeps!r}]); print(flush=True); {sleeps}"
    )
    made = subprocess.Popen(
        ["ray::Engine", "-c", program], executable=sys.executable, stdout=subprocess.PIPE, start_new_session=True
    )
    assert made.stdout
    made.stdout.readline()
    yield made
    made.kill()
    made.wait()


def test_a_stopped_process_is_ended_with_what_it_has_started(process):
    [child] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGSTOP)
    assert end_process(process.pid, patience_s=0.2)
    assert process.wait(10) == -signal.SIGKILL and gone(child.pid, 10)


def test_a_process_that_goes_by_itself_or_is_no_actor_s_is_left_alone(process):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        assert not end_process(other.pid, patience_s=0.2) and other.poll() is None
    finally:
        other.kill()
        other.wait()
    process.kill()
    assert not end_process(process.pid, patience_s=5.0)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_actor_that_its_raylet_cannot_reach_is_ended_and_frees_what_it_had():
    class Busy:
        def pid(self) -> int:
            return os.getpid()

    class Owner:
        """As the keeper of a pool's engines: what it has made, others end."""

        def make(self) -> Any:
            self.made: Any = ray.remote(num_cpus=0, resources={"seat": 1})(Busy).remote()  # pyright: ignore
            return self.made

    ray.init(
        address="local", num_cpus=2, resources={"seat": 1}, include_dashboard=False, log_to_driver=False,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    try:
        owner: Any = ray.remote(num_cpus=0)(Owner).remote()  # pyright: ignore
        actor: Any = ray.get(owner.make.remote(), timeout=60)
        pid: Any = ray.get(actor.pid.remote(), timeout=60)
        os.kill(pid, signal.SIGSTOP)
        global_gc()
        time.sleep(CONNECTS_S + 2)
        end(actor)
        assert gone(pid, 60)
        another: Any = ray.get(owner.make.remote(), timeout=60)
        assert ray.get(another.pid.remote(), timeout=60) != pid  # it has got the seat
    finally:
        ray.shutdown()
