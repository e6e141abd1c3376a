"""What a person sees while an evaluation goes on: a live table in a terminal, a few lines a minute in a log.

with Progress(name -> (problems, samples)) as p:  p.kept(...);  p.sampled(name, tokens);  p.verified(name, ...)
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from trd_ray.record import live_panel
from trd_ray.record.display import Display
from trd_ray.record.time_left import duration, elapsed

LINE_S = 15.0


@dataclass
class Count:
    problems: int
    samples: int  # for each problem
    sampled: int = 0
    verified: int = 0
    passed: int = 0
    by_problem: Counter[str] = field(default_factory=Counter)  # verified samples

    @property
    def problems_done(self) -> int:
        return sum(n == self.samples for n in self.by_problem.values())

    @property
    def total(self) -> int:
        return self.problems * self.samples


class Progress(Display):
    COUNTED = "samples"

    def __init__(self, benchmarks: dict[str, tuple[int, int]], console: Console | None = None):
        super().__init__(sum(problems * samples for problems, samples in benchmarks.values()), console)
        self.counts = {name: Count(*sizes) for name, sizes in benchmarks.items()}
        self._sampling_since: float | None = None  # when the first request of this start went out
        self._made = self._tokens = 0  # since then: samples of an earlier start say nothing about the pace of this one
        self._last = self._shown = 0.0

    def kept(self, benchmark: str, problem_id: str, passed: bool | None) -> None:
        """Count a sample of an earlier start; `passed` is None if it has no verdict."""
        self.counts[benchmark].sampled += 1
        if passed is not None:
            self._judge(benchmark, problem_id, passed)

    def begin(self) -> None:
        self._end_start()
        self._sampling_since = self._shown = time.monotonic()

    def sampled(self, benchmark: str, tokens: int) -> None:
        self.counts[benchmark].sampled += 1
        self._made += 1
        self._tokens += tokens
        self._last = time.monotonic()

    def verified(self, benchmark: str, problem_id: str, passed: bool) -> None:
        self._judge(benchmark, problem_id, passed)

    def _judge(self, benchmark: str, problem_id: str, passed: bool) -> None:
        count = self.counts[benchmark]
        count.verified += 1
        count.passed += passed
        count.by_problem[problem_id] += 1
        self._done = sum(c.verified for c in self.counts.values())

    def look(self) -> None:
        """Print the lines in a log if it is time for them; the panel in a terminal needs no call."""
        if self._live is None and time.monotonic() - self._shown >= LINE_S:
            self.lines()

    def lines(self) -> None:
        """Print one line for each benchmark that is under way."""
        self._shown = time.monotonic()
        rate = f"{self._rate():.0f} tokens/s, {self._left_text()}"
        for name, c in self.counts.items():
            if c.sampled > 0 and c.verified < c.total:
                self._print(
                    f"{name}: {c.problems_done}/{c.problems} problems, {c.sampled}/{c.total} samples, "
                    f"{_share(c)} of {c.verified} passed; {rate}"
                )

    def _rate(self) -> float:
        return self._tokens / self._seconds() if self._seconds() > 0 else 0.0

    def _seconds(self) -> float:
        """How long this start has been sampling."""
        if self._sampling_since is None:
            return 0.0
        return (time.monotonic() if self._left() else self._last) - self._sampling_since

    def _left(self) -> int:
        return sum(c.total - c.sampled for c in self.counts.values())

    def _left_text(self) -> str:
        """The time left at the mean pace of this start; short answers come first, so it begins too low."""
        left = self.left_s()
        return "time left unknown" if left is None else f"about {elapsed(left)} left"

    def left_s(self) -> float | None:
        return self._left() * self._seconds() / self._made if self._made else None

    def _counted(self) -> RenderableType:
        left = self.left_s()
        tail = "" if left is None else f"about {duration(left)} left"
        clock = elapsed(time.monotonic() - self._began)
        return live_panel.progress_line(self.COUNTED, self._done, self.total_steps, tail, clock, self._narrow)

    def _body(self) -> list[RenderableType]:
        plain = self.console.options.ascii_only
        pace = f"{self._rate():.0f} tokens/s in the mean" if self._sampling_since is not None else ""
        return [
            live_panel.pool_table(dict(self._pools), self._narrow, plain), Text(""),
            self._benchmarks(), Text(pace, style="dim"),
        ]  # fmt: skip

    def _benchmarks(self) -> Table:
        drawn = Table.grid(padding=(0, 2, 0, 0), expand=True)
        drawn.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for width in (9, 11, 8, 6):
            drawn.add_column(justify="right", min_width=width, no_wrap=True)
        header = ("benchmark", "problems", "samples", "verified", "passed")
        drawn.add_row(*(Text(word, style="dim") for word in header))
        for name, c in self.counts.items():
            cells = (f"{c.problems_done}/{c.problems}", f"{c.sampled}/{c.total}", str(c.verified), _share(c))
            drawn.add_row(live_panel.one_line(name), *map(Text, cells))
        return drawn

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is None and self._sampling_since is not None:
            self.lines()
        super().__exit__(kind, e, trace)


def _share(c: Count) -> str:
    return f"{c.passed / c.verified:.1%}" if c.verified else "-"
