import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from trd_ray.record.display import Display
from trd_ray.record.metrics import line

STEP = {"step": 3, "y_o/passed": 0.25, "y_r/passed": 0.875, "kl/mean": 0.1234, "seconds/step": 1.5}
POOLS = {"sampler": {"running": 3, "waiting": 5, "tokens_per_s": 812.0}, "refiner": {"running": 1}}


def plain(text: str) -> str:
    """The text without what colors it and moves the cursor."""
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=40)


def test_outside_a_terminal_it_prints_phases_and_a_line_a_step_without_control_codes():
    console = Console(file=io.StringIO())
    with Display(10, console) as d:
        d.phase("starting [red]engines[/red]")
        d.pools(POOLS)
        d.step(STEP)
    assert console.file.getvalue() == f"starting [red]engines[/red]\n{line(STEP, 10)}\n"


@pytest.mark.parametrize("console", [Console(file=io.StringIO()), terminal()], ids=["log", "terminal"])
def test_what_others_wrote_cannot_control_the_terminal(console):
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e"
    with Display(10, console) as d:
        d.say(f"the tracker failed ({hostile})")
        d.warn({"a": hostile})
        d.phase(f"evaluating {hostile}")
    assert not re.search(r"\x1b\]0;|\x1b\[2J|\u202e", console.file.getvalue())


def test_in_a_terminal_it_shows_steps_pools_and_pass_rates():
    console = terminal()
    with Display(10, console) as d:
        d.phase("step 4: sampling")
        d.pools(POOLS)
        d.step(STEP)
    shown = console.file.getvalue()
    for word in ("step 4: sampling", "3/10", "sampler", "refiner", "812", "0.250", "0.875", r"KL\s+0.1234", "left"):
        assert re.search(word, plain(shown))


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
        "import os, signal, time; from trd_ray.record.display import Display\n"
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


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_in_a_log_each_part_of_the_start_has_one_line_when_all_of_it_is_ready():
    console = Console(file=io.StringIO())
    with Display(3, console) as d:
        d.starting({"sampler": (0, 0), "learner": (0, 1)})  # the pool has not begun yet
        for up in (0, 1, 1, 2, 2):
            d.starting({"sampler": (up, 2)})
        d.starting({"learner": (1, 1)})
        d.starting({"sampler": (1, 2)})  # an engine that is restarted later is no start
    assert [line.split(" after ")[0] for line in lines_of(console)] == ["sampler ready", "learner ready"]


def test_the_panel_says_what_is_ready_and_how_long_each_has_taken(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30, record=True)
    d = Display(3, console)
    with monkeypatch.context() as m:
        now = [100.0]
        m.setattr("trd_ray.record.display.time.monotonic", lambda: now[0])
        d.starting({"sampler": (0, 2), "learner": (0, 1)})
        now[0] = 130.0
        d.starting({"sampler": (2, 2)})
        now[0] = 171.0
        console.print(d._panel())
    shown = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}
    assert shown["sampler"] == ["2", "of", "2", "30"] and shown["learner"] == ["0", "of", "1", "71"]


def test_a_run_that_goes_on_without_an_engine_no_longer_shows_its_start():
    d = Display(3, Console(file=io.StringIO()))
    d.starting({"sampler": (1, 2)})
    assert d.shown()["starting"] == {"sampler": [1, 2]}
    d.rollouts(0, 16)
    assert "starting" not in d.shown()


def test_an_evaluation_has_its_bar_pass_rate_and_time_left_in_the_panel():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30, record=True)
    d = Display(3, console)
    d.evaluating("base", 0, 80, 0)
    d.evaluating("base", 20, 80, 5)
    console.print(d._panel())
    [line] = [line for line in console.export_text().splitlines() if line.startswith("base")]
    assert "20/80" in line and "25.0% passed" in line and "left" in line
    d.evaluating("base", 80, 80, 30)
    console.print(d._panel())
    assert "80/80" not in console.export_text(), "a finished evaluation is a row of the table, not of the panel"


def test_a_log_has_a_line_of_an_evaluation_twice_a_minute_at_most(monkeypatch):
    console, now = Console(file=io.StringIO(), width=200), [0.0]
    monkeypatch.setattr("trd_ray.record.display.time.monotonic", lambda: now[0])
    with Display(3, console) as d:
        for done in range(1, 101):
            now[0] = float(done)
            d.evaluating("base", done, 100, done // 4)
    said = lines_of(console)
    assert said.pop() == "base: 25.0% of 100 samples passed"
    assert [line.partition(" samples")[0] for line in said] == [
        f"evaluating base: {done} of 100" for done in (31, 61, 91)
    ]
    assert all("% passed" in line for line in said)


def test_a_log_says_where_the_run_is_and_has_no_line_for_a_phase_that_comes_back():
    console = Console(file=io.StringIO(), width=200)
    with Display(3, console) as d:
        d.where("runs/mine")
        for phase in ("starting", "training", "writing checkpoint 1", "training", "writing checkpoint 2", "training"):
            d.phase(phase)
    said = ["run directory: runs/mine", "starting", "training", "writing checkpoint 1", "writing checkpoint 2"]
    assert lines_of(console) == said


def test_the_panel_of_a_training_run_fits_80_columns_and_shows_loss_norm_staleness_and_rollouts():
    console = Console(file=io.StringIO(), width=80, height=30)
    d = Display(10, console)
    d.phase("training")
    d.pools({name: {"running": 256, "waiting": 1024, "tokens_per_s": 81200.0} for name in ("sampler", "refiner")})
    console.file = io.StringIO()
    d.step(STEP | {"loss": 0.1234, "grad_norm": 1.32, "staleness/mean": 1.0, "lr": 2e-6, "sync/gap_mean": 3e-7})
    d.rollouts(37, 64)
    console.file = io.StringIO()
    console.print(d._panel())
    shown = console.file.getvalue()
    for word in (r"loss\s+0.1234", r"grad norm\s+1.32", r"staleness\s+1.0", "rows of step.*37/64", "81200", "refined"):
        assert re.search(word, shown)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
