"""What ended a run is one sentence: the cause in Ray's own words, what is kept, the command that goes on."""

import errno
import os
import signal
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from ray._private import worker as ray_worker
from ray.data.exceptions import SystemException
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError, UserCodeException
from ray.train import ControllerError, WorkerGroupError

from trd_ray.engine.pool import PoolFailed
from trd_ray.errors import RunFailed, UserError
from trd_ray.failures import Failure
from trd_ray.record.directory import RunDirectory
from trd_ray.session.beginning import Beginning
from trd_ray.session.endings import cause, resuming, told
from trd_ray.session.stop import Stopped
from trd_ray.stream.feed import StreamEnded

# As Ray 2.60 words them.
MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: a6b1) \
was 22.91GB used / 23.49GB limit (0.975)
OOM kill reason: Memory usage 24599871488B exceeded threshold of 23969140736B (95.0% of 25230676992B limit)
Selected to kill: (Task: job ID=01000000, lease ID=00ff, task name=RayTrainWorker, required resources={CPU: 1}, a)"""
KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: {name}
\tactor_id: 57593eceafa1a5f2
\tpid: 21423
\tnamespace: 8b1f60d1
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."""
NODE = """The actor died unexpectedly before finishing this task.
\tclass_name: Pool
\tip: 10.0.0.7
The actor is dead because its node has died. Node Id: 3c8b"""


def died(text: str) -> ActorDiedError:
    e = ActorDiedError()
    e.error_msg = text
    return e


def wrapped(e: Exception, outer: Exception) -> Exception:
    try:
        raise outer from e
    except Exception as both:
        return both


def raised_in_actor(e: Exception) -> Exception:
    """As `ray.get` raises it: of both types, with the trace as its text."""
    return RayTaskError("submit", f"Traceback (most recent call last):\n{e!r}", e).as_instanceof_cause()


LEARNER = "the learner ended while it was asked to step"


@pytest.mark.parametrize(
    "error, words",
    [
        (
            wrapped(WorkerGroupError("a page", {0: OutOfMemoryError(MEMORY)}), RunFailed(LEARNER)),
            [LEARNER, "ran out of memory", "10.0.0.7", "22.91 of 23.49 GiB", "RayTrainWorker", "lower"],
        ),
        (
            wrapped(WorkerGroupError("a page", {1: died(KILLED.format(name="RayTrainWorker"))}), RunFailed(LEARNER)),
            [LEARNER, "a learner rank on node 10.0.0.7", "killed or it crashed", "dmesg"],
        ),
        (
            wrapped(ControllerError(died(KILLED.format(name="TrainController"))), RunFailed(LEARNER)),
            ["Ray Train's controller on node 10.0.0.7"],
        ),
        (wrapped(WorkerGroupError("a page", {0: ValueError("no such key")}), RunFailed(LEARNER)), ["no such key"]),
        (died(KILLED.format(name="Mailbox")), ["the learner's mailbox on node 10.0.0.7"]),
        (died(NODE), ["an engine pool on node 10.0.0.7", "its node has died"]),
        (NodeDiedError("node 3c8b, IP 10.0.0.7, has died"), ["a node died", "10.0.0.7"]),
        (OutOfMemoryError(MEMORY), ["ran out of memory", "10.0.0.7"]),
        (
            wrapped(RayTaskError("map", "trace\nPoolFailed: x", PoolFailed("engine sampler-0 died twice\nlog")),
                    StreamEnded("x")),
            ["engine sampler-0 died twice"],
        ),
        (
            wrapped(raised_in_actor(PoolFailed("engine sampler-0 died twice\nlog")), StreamEnded("ray::MapWorker")),
            ["engine sampler-0 died twice"],
        ),
        (raised_in_actor(PoolFailed("engine sampler-0 failed to start\nlog")), ["engine sampler-0 failed to start"]),
        (wrapped(raised_in_actor(ValueError("no such rule")), StreamEnded("a page")), ["ValueError: no such rule"]),
        (
            wrapped(
                RayTaskError("map", "\x1b[36mray::Map\x1b[39m trace\n" + KILLED.format(name="Pool"), ValueError("x")),
                StreamEnded("ray::MapWorker a page"),
            ),
            ["an engine pool on node 10.0.0.7", "killed or it crashed"],
        ),
        (
            wrapped(raised_in_actor(Failure("bug", "KeyError: 'y_o'", "trace")), StreamEnded("ray::MapWorker a page")),
            ["KeyError: 'y_o'"],
        ),
        (wrapped(raised_in_actor(UserError("one", "other")), StreamEnded("ray::MapWorker a page")), ["one; other"]),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a/rows"), ["No space left on device: /runs/a/rows"]),
        (TimeoutError("waited 3600 s (learner.step_timeout_s) for the learner to step"), ["learner.step_timeout_s"]),
    ],
)  # fmt: skip
def test_the_cause_is_found_behind_what_ray_wraps_it_in(error, words):
    said = cause(error)
    assert all(word in said for word in words), said
    assert "\n" not in said and "pid=" not in said and len(said) < 500


IN_STAGE = """Traceback (most recent call last):
  File "/me/views.py", line 9, in load_views
    return views[name]
trd_ray.odd.NoSuchView: no view of this name:
there are two others
"""
IN_CALL = f"""{IN_STAGE}
The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/ray/data/_internal/planner/plan_udf_map_op.py", line 482, in _try_wrap_udf_exception
    raise UserCodeException("UDF failed to process a data block.") from e
ray.exceptions.UserCodeException: UDF failed to process a data block.
"""
IN_TWO = """Traceback (most recent call last):
  File "/me/flow.py", line 1, in __call__
    return ray.get(asked)
ray.exceptions.RayTaskError(KeyError): ray::Shelf.tests() (pid=7, ip=10.0.0.7)
  File "/me/shelf.py", line 2, in tests
    return self.found[7]
KeyError: 7
"""


@pytest.mark.parametrize(
    "from_ray, said",
    [
        (RayTaskError("map", "a trace", KeyError("y_o")).as_instanceof_cause(), "KeyError: 'y_o'"),
        (RayTaskError("map", "a trace", AssertionError()).as_instanceof_cause(), "AssertionError"),
        (RayTaskError("map", IN_CALL, UserCodeException("UDF failed")), "NoSuchView: no view of this name:"),
        (ActorDiedError(RayTaskError("__init__", IN_STAGE, ValueError("x"))), "NoSuchView: no view of this name:"),
        (RayTaskError("map", IN_TWO, UserCodeException("UDF failed")), "KeyError: 7"),
    ],
)
def test_a_bug_in_a_stage_is_named_though_ray_data_puts_an_error_without_a_word_behind_it(from_ray, said):
    assert cause(wrapped(wrapped(SystemException(), from_ray), StreamEnded("a page"))) == said


def test_the_sentence_names_the_checkpoint_the_command_and_the_file_with_the_trace(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step-000006").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["/home/me/.venv/bin/trd", "train", "my recipe.yaml", "learner.lr=1e-5"])
    with pytest.raises(RunFailed) as failed, told(tmp_path, "train"):
        raise died(KILLED.format(name="Pool"))
    [trace] = (tmp_path / "logs").glob("failure-*.txt")
    assert "ActorDiedError" in trace.read_text()
    command = "`trd train 'my recipe.yaml' learner.lr=1e-5 --resume`"
    for words in ("an engine pool", f"checkpoint 6 is kept in {tmp_path / 'checkpoints'}", command, str(trace)):
        assert words in str(failed.value)


def test_a_raylet_that_died_is_named_whoever_was_missed_first_and_though_ray_is_closed_by_then(tmp_path, monkeypatch):
    class Near:
        connected = local = True
        connect = machines = list

        def close(self) -> None:
            monkeypatch.setattr(ray_worker, "_global_node", None)

    node = SimpleNamespace(dead_processes=lambda: [("raylet", None)])
    with pytest.raises(RunFailed, match="^Ray's raylet on this machine has died") as failed, ExitStack() as stack:
        beginning = Beginning("train", Near(), lambda path: "all is kept", stack)
        beginning.claimed(RunDirectory(tmp_path))
        with beginning.running():
            monkeypatch.setattr(ray_worker, "_global_node", node)
            raise died(KILLED.format(name="RayTrainWorker"))
    assert "logs/ray.log; all is kept" in str(failed.value)


def test_the_trace_of_a_bug_in_another_process_is_in_the_file(tmp_path):
    with pytest.raises(RunFailed, match="^KeyError: 'y_o'; ") as failed, told(tmp_path, "train"):
        raise wrapped(raised_in_actor(Failure("bug", "KeyError: 'y_o'", "line 7 of flow.py")), StreamEnded("a page"))
    [trace] = (tmp_path / "logs").glob("failure-*.txt")
    assert trace.read_text().endswith("In the process that failed:\nline 7 of flow.py")
    assert str(trace) in str(failed.value)


def test_a_stop_says_what_is_kept_and_a_second_signal_too(tmp_path):
    begins = "^SIGTERM; no checkpoint was written yet: .*--resume` begins again$"
    with pytest.raises(Stopped, match=begins), told(tmp_path, "train"):
        raise Stopped(signal.SIGTERM)
    with pytest.raises(Stopped, match="^SIGINT; at once; finished cells") as stopped, told(tmp_path, "compare"):
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 130


def test_what_the_user_can_fix_passes_as_it_is(tmp_path):
    with pytest.raises(UserError, match="^a sentence$"), told(tmp_path, "train"):
        raise UserError("a sentence")


@pytest.mark.parametrize("given", [["--resume"], ["--resume=auto"]])
def test_a_command_that_resumes_already_is_named_as_it_is(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "a.yaml", *given])
    assert resuming() == f"`python jobs/train.py a.yaml {given[0]}`"


@pytest.mark.parametrize("argv", [["/bin/trd", "reproduce", "a", "steps=2"], ["jobs/reproduce.py", "a", "steps=2"]])
def test_a_command_that_goes_on_unasked_is_named_as_it_is(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", argv)
    assert resuming().endswith("a steps=2`")
    monkeypatch.setattr(sys, "argv", ["/bin/trd", "train", "reproduce.yaml"])
    assert resuming() == "`trd train reproduce.yaml --resume`"


@pytest.mark.parametrize("given", [[], ["--resume=no"], ["--resume", "no"]])
def test_a_submitted_job_goes_on_unasked_and_its_command_says_so(monkeypatch, given):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "a.yaml", *given])
    assert resuming() == "`python jobs/train.py a.yaml`"
