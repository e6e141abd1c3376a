import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from trd_ray.run.display import Display
from trd_ray.run.metrics import line

STEP = {"step": 2, "y_o/passed": 0.25, "y_r/passed": 0.875, "kl/mean": 0.1234, "seconds/step": 1.5}
POOLS = {"sampler": {"running": 3, "waiting": 5, "tokens_per_s": 812.0}, "refiner": {"running": 1}}


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=40)


def test_outside_a_terminal_it_prints_phases_and_a_line_a_step_without_control_codes():
    console = Console(file=io.StringIO())
    with Display(10, console) as d:
        d.phase("starting [red]engines[/red]")
        d.pools(POOLS)
        d.step(STEP)
    assert console.file.getvalue() == f"starting [red]engines[/red]\n{line(STEP, 10)}\n"


def test_in_a_terminal_it_shows_steps_pools_and_pass_rates():
    console = terminal()
    with Display(10, console) as d:
        d.phase("step 4: sampling")
        d.pools(POOLS)
        d.step(STEP)
    shown = console.file.getvalue()
    for word in ("step 4: sampling", "3/10", "sampler", "refiner", "812", "0.250", "0.875", "KL 0.1234", "left"):
        assert word in shown


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_cursor_comes_back_and_the_error_goes_on(error):
    console = terminal()
    with pytest.raises(error), Display(10, console) as d:
        d.step(STEP)
        raise error
    shown = console.file.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_closed_pipe_does_not_end_the_run():
    file = io.StringIO()
    with Display(10, Console(file=file)) as d:
        file.close()
        d.phase("on")
        d.step(STEP)


def test_ctrl_c_in_a_real_terminal_leaves_it_usable():
    code = (
        "import os, signal, time; from trd_ray.run.display import Display\n"
        "with Display(3) as d:\n"
        "    d.phase('work'); time.sleep(0.5); os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux reports the closed end of a terminal as an input/output error
        pass
    finally:
        os.close(ours)
    assert process.wait(10) != 0
    assert b"work" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
