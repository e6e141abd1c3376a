"""When an engine's processes count as hung: by a clock and CPU times that the test sets, and by real processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil

from serving import until
from trd_ray.engine.own_process import FRESH_S, Signs


def watched(started: bool = True) -> tuple[Signs, SimpleNamespace]:
    seen = SimpleNamespace(now=100.0, used=7.0, stopped=False, looks=0)

    def usage() -> tuple[float, bool]:
        seen.looks += 1
        return seen.used, seen.stopped

    signs = Signs(lambda: seen.now, usage)
    signs.started = started
    return signs, seen


def passing(signs: Signs, seen: SimpleNamespace, seconds: int, used: float = 0.0) -> float:
    """How long it is quiet after so many seconds, asked once a second, with `used` CPU seconds in each."""
    quiet = 0.0
    for _ in range(seconds):
        seen.now += 1
        seen.used += used
        quiet = signs.quiet_s()
    return quiet


def test_a_vllm_that_answers_is_not_quiet_and_no_process_is_looked_at():
    signs, seen = watched()
    for _ in range(100):
        assert passing(signs, seen, 5) == 5
        signs.heard()
    assert seen.looks == 0


def test_what_neither_answers_nor_works_is_quiet():
    signs, seen = watched()
    assert passing(signs, seen, 90, used=0.01) == 90  # what waiting processes use


def test_what_compiles_is_not_quiet_also_on_a_busy_machine():
    signs, seen = watched()
    assert passing(signs, seen, 300, used=0.1) <= FRESH_S + 1


def test_work_that_ends_begins_the_quiet_time():
    signs, seen = watched()
    passing(signs, seen, 100, used=1.0)
    assert 60 <= passing(signs, seen, 70) <= 70


def test_the_work_of_others_does_not_hide_a_stopped_process():
    signs, seen = watched()
    seen.stopped = True
    assert passing(signs, seen, 70, used=1.0) == 70
    seen.stopped = False
    assert passing(signs, seen, 1, used=10.0) == 0


def test_while_it_starts_only_a_stopped_process_is_quiet():
    signs, seen = watched(started=False)
    assert passing(signs, seen, 500) == 0
    seen.stopped = True
    assert passing(signs, seen, 70) == 70


def test_an_answer_ends_the_quiet_time():
    signs, seen = watched()
    passing(signs, seen, 50)
    signs.heard()
    assert passing(signs, seen, 1) == 1


GROUP = """
import os, subprocess, sys, time
os.setpgid(0, 0)
from trd_ray.engine.own_process import usage_of_group
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print(child.pid, flush=True)
for _ in sys.stdin:
    print(*usage_of_group(), flush=True)
child.kill()
"""


def test_the_cpu_time_and_a_stopped_process_of_a_real_group_are_seen():
    with subprocess.Popen(
        [sys.executable, "-c", GROUP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin and parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))

        def asked() -> tuple[float, bool]:
            assert parent.stdin and parent.stdout
            parent.stdin.write("\n")
            parent.stdin.flush()
            used, stopped = parent.stdout.readline().split()
            return float(used), stopped == "True"

        first, stopped = asked()
        assert not stopped
        until(lambda: asked()[0] > first + 0.2, 120)
        child.suspend()
        until(lambda: asked()[1], 120)
        child.resume()
        until(lambda: not asked()[1], 120)
        child.kill()
        parent.stdin.close()


TEMPORARY = """
import os, tempfile
from trd_ray.engine.own_process import take_descendants_along
take_descendants_along()
print(tempfile.mkdtemp(), os.environ["TORCHINDUCTOR_CACHE_DIR"], flush=True)
input()
"""


def test_the_temporary_files_of_an_engine_that_is_killed_go_with_it_and_compiled_kernels_stay(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    with subprocess.Popen(
        [sys.executable, "-c", TEMPORARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment | {"TMPDIR": str(tmp_path)},
    ) as engine:  # fmt: skip
        assert engine.stdout
        made, kernels = map(Path, engine.stdout.readline().split())
        assert made.is_dir() and made.parent.parent == tmp_path == kernels.parent
        assert not psutil.Process(engine.pid).children()  # which Ray would kill before it ends the engine
        engine.kill()
    until(lambda: not made.parent.exists(), 120)
