"""What a person sees while a run goes on: a live panel in a terminal, a line a step anywhere else.

    with Display(total_steps) as d:  d.phase("starting engines");  d.pools({"sampler": {...}});  d.step(metrics)

The display never ends a run: a terminal or pipe that has gone away is ignored. Leaving the block, by an exception or
Ctrl-C too, gives the terminal back as it was, with the last panel left in its scroll-back.
"""

import contextlib
from types import TracebackType
from typing import Any, ClassVar, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trd_ray.run.metrics import line

_GONE = (OSError, ValueError)  # what writing to a closed terminal, pipe or file raises


class Display:
    """`done` steps were finished by an earlier start of the run."""

    on_screen: ClassVar["Display | None"] = None  # the one with a live panel, which only lines of its `say` do not tear

    def __init__(self, total_steps: int, console: Console | None = None, done: int = 0):
        self.console = console or Console()
        self.total_steps = total_steps
        self._live: Live | None = None
        self._pools: dict[str, dict[str, float]] = {}
        self._metrics: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("starting", total=total_steps, completed=done)

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
        """What is being done now, in a few words."""
        self._progress.update(self._task, description=Text(text).markup)
        if self._live is None:
            self._print(text)

    def pools(self, pools: dict[str, dict[str, float]]) -> None:
        """State of each engine pool: `running` and `waiting` requests, `tokens_per_s`; call it as often as you like."""
        self._pools = pools

    def step(self, metrics: dict[str, Any]) -> None:
        """The metrics of a finished step, as logged."""
        self._metrics = metrics
        self._progress.update(self._task, completed=metrics["step"] + 1)
        if self._live is None:
            self._print(line(metrics, self.total_steps))

    def warn(self, found: dict[str, str]) -> list[str]:
        """Show each kind of warning once, in lines that stay; `found` is kind -> sentence. Returns what was shown."""
        new = [f"warning: {text}" for kind, text in found.items() if kind not in self._warned]
        self._warned |= found.keys()
        for text in new:
            self._print(text, style="yellow")
        return new

    def say(self, text: str) -> None:
        """A line that stays, above the panel too."""
        self._print(text)

    def _print(self, text: str, style: str = "") -> None:
        with contextlib.suppress(*_GONE):
            self.console.print(Text(text, style=style), soft_wrap=True)

    def _panel(self) -> Group:
        pools = Table("pool", box=None, padding=(0, 2))
        for column in ("running", "waiting", "tokens/s"):
            pools.add_column(column, justify="right")
        for name, state in self._pools.items():
            pools.add_row(name, *(_number(state.get(k), ".0f") for k in ("running", "waiting", "tokens_per_s")))
        m = self._metrics
        last = Table("last step", box=None, padding=(0, 2))
        for column in ("raw", "refined"):
            last.add_column(column, justify="right")
        last.add_row("pass rate", _number(m.get("y_o/passed"), ".3f"), _number(m.get("y_r/passed"), ".3f"))
        last.add_row("tokens", _number(m.get("y_o/tokens_mean"), ".0f"), _number(m.get("y_r/tokens_mean"), ".0f"))
        shown = [
            ("KL", "kl/mean", ".4f"),
            ("lr", "lr", ".1e"),
            ("gap", "sync/gap_mean", ".1e"),
            ("s", "seconds/step", ".1f"),
        ]
        numbers = Text("   ".join(f"{label} {_number(m.get(name), form)}" for label, name, form in shown))
        side = Table.grid(padding=(0, 4))
        side.add_row(pools, Group(last, numbers) if m else Text("no step finished yet"))
        return Group(self._progress, side)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
