"""What a person sees while a run goes on: a live panel in a terminal, a line a step anywhere else.

    with Display(total_steps) as d:
        d.phase("starting engines");  d.starting({"sampler": (1, 2)})
        d.phase("evaluating base");   d.evaluating("base", done=3, total=8, passed=1)
        d.phase("training");          d.pools({"sampler": {...}});  d.rollouts(5, 16);  d.step(metrics)

How the panel looks is in live_panel.py, and how long the run will take in time_left.py. A terminal that cannot move its
cursor (TERM=dumb) gets lines. NO_COLOR takes the colors away.

The display never ends a run: a terminal or pipe that has gone away is ignored. When the block is left, also by an
exception or Ctrl-C, the terminal is as it was before, with the last panel in its scroll-back.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from rich.console import Console, Group, RenderableType
from rich.text import Text

from trd_ray.record import live_panel
from trd_ray.record.live_panel import HISTORY, SPARK, alarm_line, progress_line
from trd_ray.record.markdown import visible
from trd_ray.record.metrics import line
from trd_ray.record.steady_live import SteadyLive, Within
from trd_ray.record.time_left import Due, TimeLeft, duration, elapsed

LINE_S = 30.0  # from one line of an evaluation to the next, in a log
DRAWN_A_SECOND = 2  # at most: a panel costs some milliseconds of the driver, which has other things to do
ALARM = "alarm/"  # begins the metrics that are 1 while an alarm lasts
_GONE = (OSError, ValueError, SystemExit)  # raised by writing to a closed terminal, pipe or file


class Display:
    """The display of one start of a run; `done` steps were finished by earlier starts."""

    COUNTED = "steps"
    # The display that has a live panel now. Whoever prints meanwhile uses its `say`, which does not tear the panel.
    on_screen: ClassVar["Display | None"] = None

    def __init__(self, total_steps: int, console: Console | None = None, done: int = 0):
        self.console = console or Console()
        self.total_steps = total_steps
        self.time_left = TimeLeft(total_steps, done, clock=lambda: time.monotonic())
        # The thread that draws reads all of these: what changes is replaced, never changed in place.
        self._done = done
        self._began = time.monotonic()
        self._live: SteadyLive | None = None
        self._pools: Mapping[str, Mapping[str, Any]] = {}
        self._phase = self._turn = ""
        self._earlier: deque[str] = deque(maxlen=3)  # an evaluation and a checkpoint may come in between
        self._metrics: dict[str, Any] = {}
        self._history: dict[str, tuple[float, ...]] = {}
        self._rollouts: tuple[int, int] | None = None
        self._rows = 0  # of a step, as the last one had them
        self._starting: dict[str, Starting] = {}
        self._evaluation: Evaluated | None = None  # the one under way
        self._scores: dict[str, tuple[float, ...]] = {}  # by set: the shares that passed
        self._line_due = 0.0  # when an evaluation may have its next line in a log
        self._warned: set[str] = set()
        self._alarms: tuple[str, ...] = ()  # by the last step
        self._lasting: tuple[str, ...] | None = None  # as somebody said who watches them
        self._place = ""
        self._checkpoint: tuple[int, float] | None = None  # steps, and when it was written; of a run that trains

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = SteadyLive(
                get_renderable=self._panel, console=self.console, refresh_per_second=DRAWN_A_SECOND, auto_refresh=True
            )
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

    # What a run tells

    def phase(self, text: str) -> None:
        """Say what is being done now, in a few words. A log has no line for a phase that comes back after others."""
        text = visible(text)  # a set's name is a user's
        comes_back = text in self._earlier
        self._earlier.append(self._phase)
        self._phase = text
        if self._live is None and not comes_back:
            self._print(text)

    def turn(self, said: str) -> None:
        """Say who has the GPUs, where engines and learner have them in turn. A log has no line for it."""
        self._turn = said

    def where(self, directory: Path | str) -> None:
        """Say which run directory it is."""
        self._place = str(directory)
        if self._live is None:
            self._print(f"run directory: {self._place}")

    def pools(self, pools: Mapping[str, Mapping[str, Any]]) -> None:
        """Show what the pools do, as their figures say (PoolFigures); what is in `pools` later is shown too."""
        self._pools = pools

    def starting(self, parts: dict[str, tuple[int, int]]) -> None:
        """Show how many processes of each part are ready, as {"sampler": (1, 2)} for 1 of 2; may be called at any rate.

        The clock of a part begins with the first call that names it.
        """
        for name, (ready, of) in parts.items():
            part = self._starting.get(name) or Starting(time.monotonic())
            self._starting = self._starting | {name: part}
            part.ready = ready
            part.of = of
            if part.took_s is None and 0 < of <= ready:
                part.took_s = time.monotonic() - part.began
                if self._live is None:
                    self._print(f"{name} ready after {part.took_s:.0f} s")

    def plans(self, due: Iterable[Due]) -> None:
        """What will be evaluated, which is part of the time left."""
        self.time_left.plans(due)

    def evaluating(self, name: str, done: int, total: int, passed: int) -> None:
        """Show how many samples of an evaluation have a verdict, and how many passed; called after each verdict."""
        self._end_start()
        self.time_left.evaluating(name, done, total)
        if self._evaluation is None or self._evaluation.name != name:
            self._line_due = time.monotonic() + LINE_S
        self._evaluation = Evaluated(name, done, total, passed) if done < total else None
        if done >= total > 0:
            self._print(f"{name}: {passed / total:.1%} of {total} samples passed")
            of = name.partition(" on ")[2]
            self._scores = self._scores | {of: (*self._scores.get(of, ()), passed / total)}
        now = time.monotonic()
        if self._live is None and now >= self._line_due and done < total:
            self._line_due = now + LINE_S
            left = self.time_left.of_evaluation()
            about = "" if left is None else f", about {timedelta(seconds=round(left))} left"
            self._print(f"evaluating {name}: {done} of {total} samples, {_share(done, passed)}{about}")

    def rollouts(self, done: int, of: int) -> None:
        """Show how many rows of the step under way have come out of the stream."""
        self._end_start()
        self._rollouts = done, of
        self._rows = of

    def step(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of a finished step, as they are logged."""
        self._end_start()
        self._keep(metrics)
        self._rollouts = None
        self.time_left.step(metrics["step"], metrics.get("seconds/step"))
        if self._live is None:
            self._print(line(metrics, self.total_steps))

    def remember(self, recorded: Sequence[dict[str, Any]]) -> None:
        """Show the metrics of the steps that earlier starts made, until this one has made its own."""
        for metrics in recorded[-SPARK:]:
            self._keep(metrics)

    def checkpoint(self, steps: int) -> None:
        """Say which checkpoint is the newest, 0 for none yet; a run that never says so has none."""
        self._checkpoint = steps, time.monotonic()

    def alarms(self, lasting: Iterable[str]) -> None:
        """Show which alarms last. Who never calls this has them from the metrics alarm/* of the last step."""
        self._lasting = tuple(lasting)

    def stands_still(self) -> None:
        """What comes now, until the next step has ended, is no sign of the pace."""
        self.time_left.stands_still()

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

    # What others read

    def shown(self) -> dict[str, Any]:
        """The same as numbers, for whoever does not see the screen."""
        found: dict[str, Any] = {"phase": self._phase, self.COUNTED: [self._done, self.total_steps]}
        if self._is_starting():
            found["starting"] = {name: [part.ready, part.of] for name, part in self._starting.items()}
        if self._rollouts:
            found["rollouts"] = list(self._rollouts)
        if self._evaluation:
            found["evaluating"] = {"samples": [self._evaluation.done, self._evaluation.total]}
        if (left := self.time_left.left()) and left.unmeasured:
            found["evaluations_not_in_left_s"] = left.unmeasured
        return found

    def left_s(self) -> float | None:
        """Seconds that the run will still take, with the evaluations that can be told; None while nothing is known."""
        left = self.time_left.left()
        return round(left.seconds, 1) if left else None

    def _keep(self, metrics: dict[str, Any]) -> None:
        self._metrics = metrics
        self._done = metrics["step"]
        self._history = {
            name: (*self._history.get(name, ()), value if isinstance(value, int | float) else math.nan)[-SPARK:]
            for name in HISTORY
            if (value := metrics.get(name)) is not None or name in self._history
        }
        self._alarms = tuple(name.removeprefix(ALARM) for name in metrics if name.startswith(ALARM) and metrics[name])

    def _print(self, text: str, style: str = "") -> None:
        with contextlib.suppress(*_GONE):
            self.console.print(Text(visible(text), style=style), soft_wrap=True)

    # The panel

    @property
    def _width(self) -> int:
        return live_panel.shown_width(self.console.width)

    @property
    def _narrow(self) -> bool:
        return self._width < live_panel.NARROW

    def _panel(self) -> RenderableType:
        parts = self._head()
        if self._is_starting():
            parts.append(self._start())
        elif self._pools or self._metrics:
            parts += self._body()
        return Within(Group(*parts, *self._foot()), self._width)

    def _head(self) -> list[RenderableType]:
        return [
            live_panel.phase_line(f"{self._phase}: {self._turn}" if self._turn else self._phase, self._width),
            self._counted() if self.total_steps else Text(""),
            self._under_way(),
            alarm_line(self._alarms if self._lasting is None else self._lasting),
        ]  # fmt: skip

    def _counted(self) -> RenderableType:
        clock = elapsed(time.monotonic() - self._began)
        return progress_line(self.COUNTED, self._done, self.total_steps, self._left_text(), clock, self._narrow)

    def _left_text(self) -> str:
        left = self.time_left.left()
        return str(left) if left and (left.seconds >= 1 or left.unmeasured) else ""

    def _under_way(self) -> RenderableType:
        """The evaluation that is being made, else the rows of the step."""
        if e := self._evaluation:
            left = self.time_left.of_evaluation()
            tail = "" if left is None else f"about {duration(left)} left"
            share = _share(e.done, e.passed)
            return progress_line(e.name, e.done, e.total, share if self._narrow else tail, share, self._narrow)
        if self._is_starting() or not self._rows or self._done >= self.total_steps:
            return Text("")
        done, of = self._rollouts or (0, self._rows)
        return progress_line("rows of step", done, of, narrow=self._narrow)

    def _body(self) -> list[RenderableType]:
        plain = self.console.options.ascii_only
        parts: list[RenderableType] = [live_panel.pool_table(dict(self._pools), self._narrow, plain), Text("")]
        parts.append(live_panel.last_step(self._metrics, self._history, self._width, plain))
        learns = any(name in self._metrics for _, name, _ in live_panel.NUMBERS)
        if self._checkpoint is not None or learns:  # a corpus has no numbers of a learner
            parts += live_panel.number_lines(self._metrics, self._width)
        if self.time_left.due or self._scores:
            parts.append(live_panel.held_out_line(self._scores))
        return parts

    def _foot(self) -> list[RenderableType]:
        told: list[RenderableType] = [live_panel.labelled("in", self._place)] if self._place else []
        if self._checkpoint is not None:
            steps, when = self._checkpoint
            age = duration(time.monotonic() - when)
            told.insert(0, live_panel.labelled("checkpoint", f"{steps}, {age} old" if steps else "none yet"))
        return told

    def _is_starting(self) -> bool:
        return any(part.took_s is None for part in self._starting.values())

    def _end_start(self) -> None:
        """The run goes on without what is not ready by now, such as an engine that rests."""
        for part in self._starting.values():
            if part.took_s is None:
                part.took_s = time.monotonic() - part.began

    def _start(self) -> RenderableType:
        now = time.monotonic()
        return live_panel.start_table(
            {
                name: (part.ready, part.of, now - part.began if part.took_s is None else part.took_s)
                for name, part in self._starting.items()
            }
        )


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


@dataclass(frozen=True)
class Evaluated:
    """An evaluation under way."""

    name: str
    done: int
    total: int
    passed: int


def _share(done: int, passed: int) -> str:
    return f"{passed / done:.1%} passed" if done else ""
