"""A run in a process of its own: what ends it is raised here, what it prints is printed here, and it ends with us."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from trd_ray.api import apart, lead, train
from trd_ray.errors import RunFailed, UserError
from trd_ray.session.stop import Stopped

ROOT = Path(__file__).parents[2]


def ended(error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of a run that ends with this, and what its caller gets; raises what its caller meets."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def run(request: dict) -> int:
        if error:
            raise error
        return 0

    monkeypatch.setattr(lead, "_run", run)
    code = lead.lead({"outcome": str(tmp_path / "outcome.json"), "words": ["train", "given/mine.yaml"]})
    assert sys.argv == ["trd", "train", "given/mine.yaml"]  # which a sentence on how to go on quotes
    return code, apart._ended(code, tmp_path / "outcome.json")


def test_a_run_that_ends_well_raises_nothing(tmp_path, monkeypatch):
    assert ended(None, tmp_path, monkeypatch) == (0, "")


def test_all_sentences_of_a_user_s_error_arrive(tmp_path, monkeypatch):
    with pytest.raises(UserError) as e:
        ended(UserError("the first", "the second"), tmp_path, monkeypatch)
    assert e.value.sentences == ("the first", "the second")


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (RunFailed("an engine broke; checkpoint 3 is kept"), RunFailed, "an engine broke; checkpoint 3 is kept"),
        (Stopped(signal.SIGINT, "checkpoint 3 is kept"), Stopped, "SIGINT; checkpoint 3 is kept"),
        (KeyboardInterrupt(), Stopped, "interrupted"),
        (ValueError("a fault of ours"), RunFailed, "ValueError: a fault of ours"),
    ],
)
def test_what_ended_a_run_is_raised_with_its_words(error, kind, said, tmp_path, monkeypatch):
    with pytest.raises(kind) as e:
        ended(error, tmp_path, monkeypatch)
    assert str(e.value) == said


def test_a_run_that_a_callback_stopped_is_no_failure(tmp_path, monkeypatch):
    code, said = ended(
        Stopped(signal.SIGTERM, "checkpoint 3 is kept", "the callback my.py:Watch"), tmp_path, monkeypatch
    )
    assert code == 143 and said == "the callback my.py:Watch; checkpoint 3 is kept"


def test_a_process_that_left_no_word_is_a_failed_or_a_stopped_run(tmp_path):
    with pytest.raises(RunFailed, match="exit code 7"):
        apart._ended(7, tmp_path / "none.json")
    with pytest.raises(Stopped, match="SIGTERM"):
        apart._ended(143, tmp_path / "none.json")


def child(program: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def test_what_a_run_prints_is_printed_here_also_half_a_line(capsys):
    assert apart._wait(child("import sys; print('ä line'); sys.stderr.write('half a line')")) == 0
    assert sorted(capsys.readouterr().out) == sorted("ä line\nhalf a line")


def test_a_process_that_keeps_the_pipe_is_not_waited_for(capsys):
    stays = child("import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)")
    began = time.monotonic()
    assert apart._wait(stays) == 0 and time.monotonic() - began < 20
    os.kill(int(capsys.readouterr().out), signal.SIGKILL)


def test_an_interrupt_asks_the_run_to_stop_and_waits_for_it(capsys):
    program = "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: (print('saved'), sys.exit(130)))\n"
    running = child(program + "print('ready', flush=True)\nwhile True: time.sleep(0.05)")

    def interrupt() -> None:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert apart._wait(running) == 130
    out, err = capsys.readouterr()
    assert out == "ready\nsaved\n" and "interrupt again to end it at once" in err


def test_a_run_is_asked_to_stop_when_who_called_it_dies(tmp_path):
    below = "import os, time; from trd_ray.api.lead import _end_with; _end_with(os.getppid()); "
    below += "print(os.getpid(), flush=True); time.sleep(60)"
    above = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {below!r}], stdout=subprocess.PIPE); "
    above += "print(int(p.stdout.readline()), flush=True)"
    done = subprocess.run([sys.executable, "-c", above], capture_output=True, text=True, cwd=ROOT, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_imports_what_its_caller_can(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/before")
    places = apart._environment()["PYTHONPATH"].split(os.pathsep)
    assert places[0] == str(tmp_path) and places[-1] == "/before" and not any("site-packages" in p for p in places)


def test_code_that_a_run_loads_cannot_start_a_run(monkeypatch):
    monkeypatch.setenv(apart.INSIDE, "1")
    with pytest.raises(UserError, match="cannot be started by code that a run has loaded"):
        apart.run_apart({})


def test_a_fault_that_only_the_run_can_find_is_raised_here_from_any_thread(tmp_path, monkeypatch):
    """The whole way, up to what is checked before anything starts, as a notebook's thread goes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    keys = {"student": {"path": "no/such/model"}, "teacher": {"mode": "opsd"}, "run_dir": str(tmp_path / "run")}
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(
            train, keys, [{"problem": "1+1", "answer": "2", "reference": "2"}], quiet=True
        ).exception()
    assert isinstance(error, UserError) and "no/such/model" in str(error)
    assert not (tmp_path / "run").exists()
    assert sorted(p.name[:8] for p in (tmp_path / "given").iterdir()) == ["problems", "run.yaml"]
