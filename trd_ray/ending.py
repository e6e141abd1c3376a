"""End an actor, and its process where Ray leaves that: one that is stopped, or that hangs in a call of a driver.

    end(handle)  ->  ray.kill  ->  its raylet asks its process to end, and ends it if it does not answer
                 ->  a task on its node: the process is still there after ENDS_S?  ->  SIGKILL

`ray.kill` alone is not enough (Ray 2.60, tests/engine/test_ending.py). A raylet now and then asks all its workers to
collect garbage. Where it could not connect to a stopped one for that, within 20 s, its next question fails at once, and
it takes that for an answer. The process lives on until the job ends then, and nothing else gets the CPUs and GPUs that
it had reserved.
"""

import contextlib
import os
import signal
from typing import Any

import psutil
import ray
from ray._private.state import state as gcs  # the public API of actors needs a dashboard
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ENDS_S = 8.0  # that a process has: the raylet itself gives it 5 s, where it can ask
TITLE = "ray::"  # with which Ray names the processes of its actors


def end(handle: Any) -> None:
    """End the actor at once, whatever state it is in. Raises what `ray.kill` raises."""
    where = None
    with contextlib.suppress(Exception):  # of a control service that does not answer: then there is only Ray's way
        where = _process_of(handle)
    ray.kill(handle)
    if where:
        with contextlib.suppress(Exception):
            node, pid = where
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            ray.remote(num_cpus=0, max_retries=0)(end_process).options(scheduling_strategy=there).remote(pid)


def has_process(handle: Any) -> bool:
    """Whether the actor is made and alive, as far as Ray knows; also if its process is stopped."""
    with contextlib.suppress(Exception):  # of a control service that does not answer
        return _process_of(handle) is not None
    return False


def _process_of(handle: Any) -> tuple[str, int] | None:
    """The node and the process of an actor; None if it has none."""
    actor = gcs.actor_table(handle._actor_id.hex())
    if actor.get("State") != "ALIVE" or not actor["Pid"]:
        return None
    return actor["Address"]["NodeID"], actor["Pid"]


def end_process(pid: int, patience_s: float = ENDS_S) -> bool:
    """Give a process of an actor on this machine time to end, then end it and its group; whether that was needed."""
    try:
        process = psutil.Process(pid)
        if not " ".join(process.cmdline()).startswith(TITLE):  # it has gone, and another one has its number
            return False
        process.wait(patience_s)
    except psutil.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Ray gives each worker a group of its own; what the actor started is in it.
            leads = os.getpgid(pid) == pid
            (os.killpg if leads else os.kill)(pid, signal.SIGKILL)
        return True
    except psutil.Error:
        pass
    return False
