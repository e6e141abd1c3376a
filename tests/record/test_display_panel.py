"""The live panel as a person sees it: what is in it, that nothing in it jumps, and terminals that can less."""

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from trd_ray.record.display import Display
from trd_ray.record.live_panel import NUMBERS, sparkline
from trd_ray.record.steady_live import SteadyLive
from trd_ray.record.time_left import Due

WIDTHS = (60, 80, 160)
MEASURED = {name: 0.1234 for _, name, _ in NUMBERS}
STEP = MEASURED | {
    "step": 3, "y_o/passed": 0.25, "y_r/passed": 0.875, "y_o/tokens_mean": 812.4, "y_r/tokens_mean": 344.0
}  # fmt: skip
CODES = re.compile(r"\x1b\[[?\d;]*[a-zA-Z]")


def pool(up: int = 1, engines: int = 1, **more: Any) -> dict[str, Any]:
    found = {"up": up, "engines": engines, "running": 16, "waiting": 4, "busy": 0.85, "tokens_per_s": 3642.4}
    return found | {"lives": [{"state": "serving"}] * up, "restarts": 0} | more


def training(width: int = 80, total: int = 25, **console: Any) -> Display:
    """A run that trains, before its first step."""
    d = Display(total, Console(file=io.StringIO(), width=width, height=40, **console))
    d.where("runs/miniature-opsd")
    d.plans([Due(total, "trained", "", 120)])
    d.checkpoint(0)
    d.pools({"sampler": pool(), "refiner": pool()})
    return d


def seen(d: Display) -> list[str]:
    d.console.file = io.StringIO()
    d.console.print(d._panel())
    return d.console.file.getvalue().splitlines()


def row(d: Display, begins: str) -> str:
    [found] = [line for line in seen(d) if line.startswith(begins)]
    return found


def phases(d: Display):
    """The run in each of its phases, one after the other, once its engines are up."""
    d.phase("evaluating base: 30 problems x 4 samples")
    d.evaluating("base", 0, 120, 0)
    yield "base begins"
    d.evaluating("base", 45, 120, 5)
    yield "base"
    d.evaluating("base", 120, 120, 15)
    d.phase("training")
    yield "no row yet"
    d.rollouts(0, 16)
    yield "rows awaited"
    d.rollouts(16, 16)
    yield "rows there"
    d.step(STEP)
    d.step({"step": 4})
    yield "a step that measured nothing"
    d.step(STEP | {"step": 5, "y_o/tokens_mean": 16384.0, "kl/mean": 12.34567, "lr": 1e-10})
    yield "large numbers"
    d.pools({"sampler": pool(running=51234, waiting=99999, tokens_per_s=812345.0), "refiner": pool(0, 2)})
    yield "many requests"
    d.alarms(["y_o_truncated", "gap", "a_name_that_is_long_" * 5])
    yield "alarms"
    d.phase("paused after step 5")
    d.stands_still()
    d.pools({"sampler": pool(lives=[{"state": "resting"}] * 2), "refiner": pool(restarts=3)})
    yield "rests"
    d.phase("evaluating step-000010 on a_set_with_a_long_name: 30 problems x 4 samples")
    d.evaluating("step-000010 on a_set_with_a_long_name", 3, 120, 1)
    yield "a long name"
    d.evaluating("step-000010 on a_set_with_a_long_name", 120, 120, 1)
    d.checkpoint(10)
    d.step(STEP | {"step": 25})
    d.phase("stopping")
    yield "stops"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_jumps_from_phase_to_phase_and_no_line_is_wider_than_the_terminal(width):
    d = training(width)
    shapes = set()
    for phase in phases(d):
        lines = seen(d)
        assert max(map(len, lines)) <= width, (phase, lines)
        body = lines[1:] if width >= 80 else lines[lines.index(next(line for line in lines if "steps" in line)) :]
        places = [next(line for line in body if line.startswith(word)) for word in ("pool ", "last step", "KL ")]
        shapes.add((len(body), *(body.index(line) for line in places), places[0].index("engines")))
    assert len(shapes) == 1


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_terminal_that_is_too_narrow_cuts_lines_and_wraps_none(width):
    d = training(width)
    for phase in phases(d):
        assert max(map(len, seen(d))) <= width, phase


def test_a_panel_on_a_wide_screen_stays_together():
    assert max(map(len, seen(training(240)))) <= 100


def test_the_panel_shows_engines_that_serve_of_those_that_are_wanted_how_busy_they_are_and_what_the_others_do():
    d = training()
    d.pools({
        "sampler": pool(1, 3, lives=[{"state": s} for s in ("serving", "starting", "resting")], busy=0.5),
        "refiner": pool(2, 2, restarts=1),
    })  # fmt: skip
    assert re.search(r"sampler +1 of 3 +50% █+▌? +16 +4 +3642 +1 starting", row(d, "sampler"))
    assert re.search(r"refiner +2 of 2 +85% █.* 1 restart", row(d, "refiner"))


def test_the_time_left_holds_the_evaluations_that_are_due(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trd_ray.record.display.time.monotonic", lambda: now[0])
    d = training()
    d.evaluating("base", 0, 120, 0)
    now[0] += 300.0
    d.evaluating("base", 120, 120, 15)
    for step in (1, 2, 3):
        now[0] += 10.0
        d.step(STEP | {"step": step})
    assert "about 9 min left" in row(d, "steps")  # 22 steps of 10 s, and 300 s
    assert d.left_s() == 520.0
    assert "evaluations_not_in_left_s" not in d.shown()


def test_evaluations_that_nobody_can_foresee_are_said_apart():
    d = training()
    d.step(STEP)
    assert "+ evaluations" in row(d, "steps") and d.shown()["evaluations_not_in_left_s"] == 1


def test_what_was_held_out_is_shown_from_the_first_evaluation_to_the_newest_for_each_set():
    d = training()
    assert row(d, "held out").split() == ["held", "out", "-"]
    for name, passed in (
        ("base", 15),
        ("base on old", 90),
        ("step-000010", 60),
        ("trained", 108),
        ("trained on old", 84),
    ):
        d.evaluating(name, 120, 120, passed)
    assert row(d, "held out").split() == ["held", "out", "12.5%", ">", "90.0%", "old", "75.0%", ">", "70.0%"]


def test_alarms_that_last_are_named_by_who_watches_them_or_by_the_metrics_of_the_step():
    d = training()
    assert not any("alarm" in line for line in seen(d))
    d.step(STEP | {"alarm/gap": 1, "alarm/truncated": 0})
    assert "1 alarm lasts: gap" in seen(d)
    d.step(STEP)
    assert not any("alarm" in line for line in seen(d))
    d.alarms(["stalled", "gap"])
    d.step(STEP)
    assert "2 alarms last: stalled, gap" in seen(d)


def test_a_run_that_goes_on_shows_what_earlier_starts_measured_until_it_has_measured_itself():
    d = training()
    d.remember([STEP | {"step": n, "kl/mean": 1.0 / n} for n in (1, 2, 3)])
    assert "3/25" in row(d, "steps") and re.search(r"KL +0.3333", row(d, "KL"))
    assert "█▄▃" in row(d, "last step")
    d.step(STEP | {"step": 4, "kl/mean": 1.0})
    assert "█▄▃█" in row(d, "last step")


def test_the_newest_checkpoint_and_the_run_directory_are_named(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trd_ray.record.display.time.monotonic", lambda: now[0])
    d = training()
    assert row(d, "checkpoint").split() == ["checkpoint", "none", "yet"]
    d.checkpoint(10)
    now[0] += 130.0
    assert row(d, "checkpoint").split() == ["checkpoint", "10,", "2", "min", "old"]
    assert row(d, "in ").split() == ["in", "runs/miniature-opsd"]


def test_a_corpus_has_neither_numbers_of_a_learner_nor_checkpoints():
    d = Display(40, Console(file=io.StringIO(), width=80, height=40))
    d.pools({"sampler": pool()})
    d.step({name: STEP[name] for name in ("step", "y_o/passed", "y_r/passed", "y_o/tokens_mean", "y_r/tokens_mean")})
    text = "\n".join(seen(d))
    assert re.search(r"pass rate +0.250 +0.875", text) and "grad norm" not in text and "checkpoint" not in text


def test_before_there_is_a_pool_or_a_step_the_panel_says_what_is_waited_for_in_whole():
    d = Display(40, Console(file=io.StringIO(), width=60, height=40))
    said = "waiting for nodes, since the learner needs 8 GPUs and there are 4 [red]on[/red] node-7"
    d.phase(said)
    lines = seen(d)
    assert " ".join(" ".join(lines[:2]).split()) == said and "pool" not in "".join(lines)


HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp\r[bold]x[/bold]\x9b31m"


def test_no_text_from_elsewhere_steers_the_terminal_or_is_read_as_markup():
    d = training(force_terminal=True, color_system="truecolor")
    d.phase(HOSTILE)
    d.where(HOSTILE)
    d.alarms([HOSTILE])
    d.pools({HOSTILE: pool(lives=[{"state": "starting"}])})
    d.evaluating("base on " + HOSTILE, 1, 9, 1)
    text = CODES.sub("", "\n".join(seen(d)))
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert text.count("[bold]") == 3  # phase, alarm and place; the others are cut


def test_without_colors_the_panel_has_none(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    d = training(force_terminal=True)
    d.alarms(["gap"])
    d.step(STEP)
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", "\n".join(seen(d))) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2"}  # bold and dim


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Display(10, console) as d:
        d.phase("training")
        d.step(STEP)
    assert [line.partition(" pass")[0].strip() for line in console.file.getvalue().splitlines()] == [
        "training",
        "step  3/10",
    ]
    assert "\x1b" not in console.file.getvalue()


def test_a_terminal_without_unicode_gets_plain_marks():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80, height=40)
    d = Display(25, console)
    d.pools({"sampler": pool()})
    d.step(STEP)
    console.print(d._panel())
    console.file.flush()
    assert re.search(rb"sampler +1 of 1 +85% ####", raw.getvalue()) and b"refined pass" in raw.getvalue()


def test_a_panel_that_has_not_changed_is_not_drawn_again_and_a_changed_one_is_drawn_in_one_piece():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    shown = ["one"]
    live = SteadyLive(get_renderable=lambda: shown[0], console=console, auto_refresh=False)
    live.start()
    live.refresh()
    before = console.file.getvalue()
    live.refresh()
    assert console.file.getvalue() == before
    shown[0] = "two"
    live.refresh()
    drawn = console.file.getvalue().removeprefix(before)
    assert drawn.startswith("\x1b[?2026h") and drawn.endswith("\x1b[?2026l") and "two" in drawn
    live.stop()


def test_a_line_of_marks_has_a_mark_a_step_from_the_ground_to_the_most():
    assert sparkline([0.0, 0.5, 1.0], 10, 1.0) == "▁▄█"
    assert sparkline([4.0, 2.0, 1.0], 10) == "█▄▂"
    assert sparkline([math.nan, 1.0, math.inf], 10) == "?█?"
    assert sparkline(range(10), 3, 9.0) == "▆▇█"
    assert sparkline([], 10) == sparkline([1.0], 0) == "" and sparkline([0.0], 5) == "▁"
    assert sparkline([0.0, 1.0], 5, plain=True).isascii()


def test_where_engines_and_learner_have_the_gpus_in_turn_the_panel_says_whose_turn_it_is_and_a_log_does_not():
    d = training(force_terminal=True)
    d.phase("training")
    assert not any("GPUs" in line for line in seen(d))
    before = len(seen(d))
    d.turn("the learner has the GPUs")
    assert any("training: the learner has the GPUs" in line for line in seen(d)) and len(seen(d)) == before
    log = training()
    log.console.file = io.StringIO()
    log.turn("the learner has the GPUs")
    assert log.console.file.getvalue() == ""
