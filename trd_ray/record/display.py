"""What a person sees while a run goes on: a live panel in a terminal, a line a step anywhere else.

    with Display(total_steps) as d:
        d.phase("starting engines");  d.starting({"sampler": (1, 2)})
        d.phase("evaluating base");   d.evaluating("base", done=3, total=8, passed=1)
        d.phase("training");          d.pools({"sampler": {...}});  d.rollouts(5, 16);  d.step(metrics)

The display never ends a run: a terminal or pipe that has gone away is ignored. When the block is left, also by an
exception or Ctrl-C, the terminal is as it was before, with the last panel in its scroll-back.
"""

import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from trd_ray.record.metrics import line

LINE_S = 30.0  # from one line of an evaluation to the next, in a log
NUMBERS = [  # what the panel shows of the last step, line by line
    [("KL", "kl/mean", ".4f"), ("loss", "loss", ".4f"), ("gradient norm", "grad_norm", ".2f"), ("lr", "lr", ".1e")],
    [("gap", "sync/gap_mean", ".1e"), ("staleness", "staleness/mean", ".1f"), ("seconds", "seconds/step", ".1f")],
]
_GONE = (OSError, ValueError, SystemExit)  # raised by writing to a closed terminal, pipe or file


class Display:
    """The display of one start of a run; `done` steps were finished by earlier starts."""

    COUNTED = "steps"
    # The display that has a live panel now. Whoever prints meanwhile uses its `say`, which does not tear the panel.
    on_screen: ClassVar["Display | None"] = None

    def __init__(self, total_steps: int, console: Console | None = None, done: int = 0):
        self.console = console or Console()
        self.total_steps = total_steps
        self._live: Live | None = None
        self._pools: dict[str, dict[str, float]] = {}
        self._phase = Text()
        self._metrics: dict[str, Any] = {}
        self._rollouts: tuple[int, int] | None = None
        self._starting: dict[str, Starting] = {}
        self._evaluated = Progress(
            TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[passed]}"),
            TextColumn("left"), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip
        self._evaluations: dict[str, TaskID] = {}
        self._line_due = 0.0  # when an evaluation may have its next line in a log
        self._warned: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task(self.COUNTED, total=total_steps, completed=done)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=4)
            with contextlib.suppress(*_GONE):
                self._live.start()
            Display.on_screen = self
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            Display.on_screen = None
            with contextlib.suppress(*_GONE):
                self._live.stop()
            self._live = None

    def phase(self, text: str) -> None:
        """Say what is being done now, in a few words."""
        self._phase = Text(text)
        if self._live is None:
            self._print(text)

    def pools(self, pools: dict[str, dict[str, float]]) -> None:
        """Show the requests `running` and `waiting` in each pool, and its `tokens_per_s`; may be called at any rate."""
        self._pools = pools

    def starting(self, parts: dict[str, tuple[int, int]]) -> None:
        """Show how many processes of each part are ready, as {"sampler": (1, 2)} for 1 of 2; may be called at any rate.

        The clock of a part begins with the first call that names it.
        """
        for name, (ready, of) in parts.items():
            part = self._starting.setdefault(name, Starting(time.monotonic()))
            part.ready = ready
            part.of = of
            if part.took_s is None and 0 < of <= ready:
                part.took_s = time.monotonic() - part.began
                if self._live is None:
                    self._print(f"{name} ready after {part.took_s:.0f} s")

    def evaluating(self, name: str, done: int, total: int, passed: int) -> None:
        """Show how many samples of an evaluation have a verdict, and how many passed; called after each verdict."""
        self._end_start()
        share = f"{passed / done:.1%} passed" if done else ""
        if name not in self._evaluations:
            self._evaluations[name] = self._evaluated.add_task(Text(name).markup, total=total, passed=share)
            self._line_due = time.monotonic() + LINE_S
        task = self._evaluations[name]
        self._evaluated.update(task, completed=done, passed=share, visible=done < total)
        now = time.monotonic()
        if self._live is None and now >= self._line_due and done < total:
            self._line_due = now + LINE_S
            left = self._evaluated.tasks[task].time_remaining
            about = "" if left is None else f", about {timedelta(seconds=round(left))} left"
            self._print(f"evaluating {name}: {done} of {total} samples, {share}{about}")

    def rollouts(self, done: int, of: int) -> None:
        """Show how many rows of the step under way have come out of the stream."""
        self._end_start()
        self._rollouts = done, of

    def step(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of a finished step, as they are logged."""
        self._end_start()
        self._metrics = metrics
        self._rollouts = None
        self._progress.update(self._task, completed=metrics["step"])
        if self._live is None:
            self._print(line(metrics, self.total_steps))

    def warn(self, found: dict[str, str], what: str = "warning") -> list[str]:
        """Show each kind of warning once, in lines that stay, and return them; `found` maps kinds to sentences."""
        new = [f"{what}: {text}" for kind, text in found.items() if kind not in self._warned]
        self._warned |= found.keys()
        for text in new:
            self._print(text, style="yellow")
        return new

    def say(self, text: str) -> None:
        """Print a line that stays, above the panel if there is one."""
        self._print(text)

    def shown(self) -> dict[str, Any]:
        """The same as numbers, for whoever does not see the screen."""
        p = self._progress.tasks[self._task]
        found: dict[str, Any] = {"phase": self._phase.plain, self.COUNTED: [int(p.completed), int(p.total or 0)]}
        if self._is_starting():
            found["starting"] = {name: [part.ready, part.of] for name, part in self._starting.items()}
        if self._rollouts:
            found["rollouts"] = list(self._rollouts)
        for task in self._evaluated.tasks:
            if not task.finished:
                found["evaluating"] = {"samples": [int(task.completed), int(task.total or 0)]}
        return found

    def _print(self, text: str, style: str = "") -> None:
        with contextlib.suppress(*_GONE):
            self.console.print(Text(text, style=style), soft_wrap=True)

    def _panel(self) -> Group:
        pools = Table("pool", box=None, padding=(0, 1))
        for column in ("running", "waiting", "tokens/s"):
            pools.add_column(column, justify="right")
        for name, state in self._pools.items():
            pools.add_row(name, *(_number(state.get(k), ".0f") for k in ("running", "waiting", "tokens_per_s")))
        parts: list[RenderableType] = [self._phase, self._progress]
        if any(not task.finished for task in self._evaluated.tasks):
            parts.append(self._evaluated)
        if self._is_starting():
            parts.append(self._start())
            return Group(*parts)
        side = Table.grid(padding=(0, 3))
        side.add_row(pools, self._last_step() if self._metrics else Text("no step finished yet"))
        if self._rollouts:
            parts.append(Text("rollouts of this step  {} of {}".format(*self._rollouts)))
        lines = NUMBERS if self._metrics else []
        return Group(*parts, side, *(Text("  ".join(self._number(*column) for column in line)) for line in lines))

    def _number(self, label: str, name: str, form: str) -> str:
        return f"{label} {_number(self._metrics.get(name), form)}"

    def _is_starting(self) -> bool:
        return any(part.took_s is None for part in self._starting.values())

    def _end_start(self) -> None:
        """The run goes on without what is not ready by now, such as an engine that rests."""
        for part in self._starting.values():
            if part.took_s is None:
                part.took_s = time.monotonic() - part.began

    def _start(self) -> Table:
        shown = Table("starting", box=None, padding=(0, 2))
        for column in ("ready", "seconds"):
            shown.add_column(column, justify="right")
        for name, part in self._starting.items():
            seconds = time.monotonic() - part.began if part.took_s is None else part.took_s
            shown.add_row(name, f"{part.ready} of {part.of}" if part.of else "-", f"{seconds:.0f}")
        return shown

    def _last_step(self) -> Table:
        m = self._metrics
        last = Table("last step", box=None, padding=(0, 1))
        for column in ("raw", "refined"):
            last.add_column(column, justify="right")
        last.add_row("pass rate", _number(m.get("y_o/passed"), ".3f"), _number(m.get("y_r/passed"), ".3f"))
        last.add_row("tokens", _number(m.get("y_o/tokens_mean"), ".0f"), _number(m.get("y_r/tokens_mean"), ".0f"))
        return last


def console_for_results(width_of_a_log: int = 160) -> Console:
    """Where a program prints its tables at the end: a terminal, or a log file, which has no width to wrap at."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=width_of_a_log)


@dataclass
class Starting:
    """A part of the run on its way up."""

    began: float
    ready: int = 0
    of: int = 0
    took_s: float | None = None  # until all of it was ready


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
