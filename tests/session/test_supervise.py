"""The process above a run: nothing outlives it, and an end without a word is given one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trd_ray.record.events import last_events

PROGRAM = """
import sys
from trd_ray.session.last_words import say
from trd_ray.session.supervise import supervised

def main(arguments):
    import os, signal, subprocess, time
    {body}

sys.exit(supervised(main, sys.argv[1:]))
"""


def start(tmp_path: Path, body: str, *arguments: str) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(body="\n    ".join(body.strip().splitlines())))
    return subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome(process: subprocess.Popen, timeout_s: float = 90) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_arguments_output_and_exit_code_are_those_of_the_run(tmp_path):
    body = "print('did', *arguments); return 7"
    assert outcome(start(tmp_path, body, "a=1", "b c")) == (7, "did a=1 b c\n", "")


def test_a_process_that_hangs_in_its_exit_is_ended_and_no_one_else_s(tmp_path):
    """As Ray's train controller does, whose exit handler can wait for a lock that it holds: orphaned, in a session of
    its own, deaf to everything but SIGKILL."""
    body = """
hangs = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
hangs += "time.sleep(1000)"
orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", orphan, hangs], check=True)
return 0
"""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    try:
        code, out, err = outcome(start(tmp_path, body))
        assert code == 0 and "left behind" in err
        assert not lives(int(out)) and lives(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once(tmp_path, number):
    body = """
came = []
for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(n, lambda number, frame: came.append(number))
print("ready", flush=True)
end = time.monotonic() + 2
while time.monotonic() < end:
    time.sleep(0.1)
print([signal.Signals(n).name for n in came])
return 0
"""
    process = start(tmp_path, body)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert outcome(process) == (0, f"['{number.name}']\n", "")


def test_a_run_that_ended_without_a_word_is_given_one_with_what_is_kept_and_how_to_go_on(tmp_path):
    """Ray's core ends the driver with _exit when its raylet or control service is gone."""
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000006").mkdir(parents=True)
    log = run / "driver.log"
    log.write_text("[...] Failed to connect to GCS within 60 seconds\n")
    body = f"say(directory={str(run)!r}, job='train', log={str(log)!r}); os._exit(1)"
    code, _, err = outcome(start(tmp_path, body, "mine.yaml"))
    assert code == 1 and len(err.splitlines()) == 1
    for words in ("control service (GCS)", "checkpoint 6 is kept", "mine.yaml --resume`", str(log)):
        assert words in err, err


@pytest.mark.parametrize(
    "names, died",
    [
        (["gcs_server"], True),
        (["ray::DashboardAgent", "ray::RuntimeEnvAgent"], True),
        (["gcs_server", "raylet"], False),
        ([], False),
    ],
)
def test_a_raylet_of_whose_death_ray_said_nothing_is_missed(tmp_path, names, died):
    """Processes that take these names stand for Ray's, which are there when the driver ends."""
    rename = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, sys.argv[1].encode())"
    named = f"{rename}; print(1, flush=True); time.sleep(2)"
    (tmp_path / "run").mkdir()
    body = f"""
for name in {names}:
    started = subprocess.Popen([sys.executable, "-c", {named!r}, name], stdout=subprocess.PIPE)
    started.stdout.readline()
say(directory={str(tmp_path / "run")!r}, job="train", log="")
os._exit(1)"""
    code, _, err = outcome(start(tmp_path, body, "mine.yaml"))
    assert code == 1 and ("raylet on this machine has died" in err) == died, err


def test_a_killed_run_is_said_with_the_signal(tmp_path):
    code, _, err = outcome(start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert code == 128 + signal.SIGKILL and "SIGKILL" in err


def test_the_run_ends_with_the_process_above_it(tmp_path):
    process = start(tmp_path, "print(os.getpid(), flush=True); time.sleep(1000)")
    assert process.stdout
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_run_leaves_ends_also_where_the_process_above_it_was_killed_and_no_one_else_s_does(tmp_path):
    """As workers of a local Ray do, which look for a raylet that went with the driver: in a session of their own, and
    here also deaf to SIGTERM."""
    body = """
import tempfile
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
left = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
left.stdout.readline()
print(left.pid, os.environ["TMPDIR"], flush=True)
time.sleep(1000)"""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    process = start(tmp_path, body)
    try:
        assert process.stdout
        pid, temporary = process.stdout.readline().split()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while lives(int(pid)) or Path(temporary).exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert lives(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_the_heir_ends_with_a_run_that_ended_by_itself(tmp_path):
    process = start(tmp_path, "print(os.environ['TMPDIR'], flush=True); time.sleep(2); return 0")
    assert process.stdout
    process.stdout.readline()
    heirs = [one.pid for one in psutil.process_iter(["ppid", "cmdline"]) if str(tmp_path) in str(one.info["cmdline"])]
    assert len(heirs) == 3  # the process above, the run, the heir
    assert outcome(process)[0] == 0
    assert not any(lives(pid) for pid in heirs)


def test_a_run_s_temporary_files_go_with_it_but_not_ray_s_logs(tmp_path):
    body = """
import tempfile
made = tempfile.mkdtemp(prefix="vllm")
print(made, os.environ["RAY_TMPDIR"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    body = body.replace("os.kill", "sys.stdout.flush(); os.kill")
    _, out, _ = outcome(start(tmp_path, body))
    made, kept = out.split()
    assert not Path(made).exists() and not Path(made).parent.exists() and Path(kept).is_dir()


def test_nothing_of_ray_is_imported_above(tmp_path):
    source = "import sys; import trd_ray.cli; print([m for m in ('ray', 'torch', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def until(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def said(run: Path) -> str:
    return " ".join(event["said"] for event in last_events(run) if event["kind"] == "silence")


HANGS = """
from pathlib import Path
from trd_ray.session import last_words
run = Path({run!r})
last_words.say(directory=str(run), job="train")
last_words.watched(run, 0.5)
def waits_for_a_call():
    while not (run / "go").exists():
        time.sleep(0.01)
def beats():
    while not (run / "end").exists():
        last_words.beat()
        time.sleep(0.01)
{steps}
return 0
"""


def test_a_driver_that_hangs_is_named_with_the_place_and_so_is_its_return(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    process = start(tmp_path, HANGS.format(run=str(run), steps="waits_for_a_call()\nbeats()"))
    until(lambda: "has not been heard of for 0.5 s (heartbeat_s): it hangs or computes" in said(run))
    assert "waits_for_a_call (program.py, line" in said(run) and str(run / "logs" / "stacks.txt") in said(run)
    (run / "go").touch()
    until(lambda: "the run goes on" in said(run))
    (run / "end").touch()
    code, _, err = outcome(process)
    assert code == 0 and err.count("has not been heard of") == err.count("the run goes on") == 1


def test_a_driver_that_is_stopped_is_named_with_the_command_that_lets_it_go_on(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    process = start(tmp_path, HANGS.format(run=str(run), steps="print(os.getpid(), flush=True)\nbeats()"))
    assert process.stdout
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    until(lambda: f"it is stopped, and `kill -CONT {pid}` lets it go on" in said(run))
    os.kill(pid, signal.SIGCONT)
    (run / "end").touch()
    assert outcome(process)[0] == 0


def test_the_temporary_files_of_a_run_whose_supervisor_was_killed_go_with_the_next_run(tmp_path):
    body = "import tempfile; print(tempfile.mkdtemp(), flush=True); time.sleep(1000)"
    process = start(tmp_path, body)
    assert process.stdout
    left = Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    alive = start(tmp_path, body)
    assert alive.stdout
    in_use = Path(alive.stdout.readline().strip())  # it swept as it started
    until(lambda: not left.parent.exists())
    assert outcome(start(tmp_path, "return 0"))[0] == 0 and in_use.is_dir()
    alive.terminate()
    assert outcome(alive)[0] == 128 + signal.SIGTERM and not in_use.parent.exists()
