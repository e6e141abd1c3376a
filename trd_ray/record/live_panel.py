"""The parts of the live panel, each of a fixed height and width, so that nothing jumps while numbers change.

    numbers of a run, width  ->  progress_line(), pool_table(), last_step(), ...  ->  lines for rich

    steps        ━━━━━━━━━━━━╸━━━━━━━━━━━  12/25   0:01:23  about 2 min left
    rows         ━━━━━━━━━━━━━━━━━━╸━━━━━  12/16
                                                                                 alarms stand here while they last
    pool        engines  busy             running  waiting  tokens/s
    sampler      1 of 1   85% ████████▌        16        4      3642
    refiner      1 of 2   20% ██                3        0      1614  1 starting

    last step        raw   refined     KL            █▆▄▃▂▂▁▁▁▁▁▁
    pass rate      0.438     1.000     raw pass      ▁▂▂▃▃▄▄▄▄▄▄▄
    tokens            29        29     refined pass  ▁▄▆▇████████
    KL        0.0163  loss      0.0163  grad norm   1.32  lr        1.6e-04
    gap      2.5e-07  staleness    0.0  seconds      3.2  waited        0.1

Every line has at most the width of the terminal and at most WIDEST columns. Below NARROW columns what is least needed
is left out. Text that comes from elsewhere is shown without markup, and what would move the cursor is replaced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trd_ray.record.markdown import visible

WIDEST = 100  # columns; on a wider screen the eye would lose its line
NARROW = 76
LABEL = 12
CLOCK = 12  # columns, of 0:01:23 or of 12.5% passed
PHASE_LINES = 3  # a phase that is a sentence, as while nodes are awaited, may be so long
SPARK = 24  # steps in a line of marks, and columns
NUMBERS = [  # of the last step
    ("KL", "kl/mean", ".4f"),
    ("loss", "loss", ".4f"),
    ("grad norm", "grad_norm", ".2f"),
    ("lr", "lr", ".1e"),
    ("gap", "sync/gap_mean", ".1e"),
    ("staleness", "staleness/mean", ".1f"),
    ("seconds", "seconds/step", ".1f"),
    ("waited", "seconds/wait", ".1f"),
]
CELL = 18  # columns of a number with its label
PASSED = ("y_o/passed", "y_r/passed")
HISTORY = ("kl/mean", *PASSED)  # of which the last steps are drawn
_MARKS = " ▁▂▃▄▅▆▇█"
_PLAIN_MARKS = " .:-=+*##"
_FINE = " ▏▎▍▌▋▊▉█"


def shown_width(columns: int) -> int:
    return max(20, min(columns, WIDEST))


def one_line(text: str, style: str = "") -> Text:
    """A text that is cut at the end of the line."""
    return Text(" ".join(visible(text).split()), style=style, no_wrap=True, overflow="ellipsis")


def phase_line(text: str, width: int) -> Text:
    """What is being done, in one line, or in up to PHASE_LINES where it is a sentence."""
    text = " ".join(visible(text).split())
    most = PHASE_LINES * (width - 10)  # words do not fill their lines
    return Text(text if len(text) <= most else f"{text[: most - 3]}...", style="bold")


def progress_line(label: str, done: int, total: int, tail: str = "", clock: str = "", narrow: bool = False) -> Table:
    """A bar with its count; `clock` and `tail` stand behind it in places of their own."""
    line = Table.grid(padding=(0, 1, 0, 0), expand=True)
    line.add_column(width=LABEL, no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=1)
    line.add_column(justify="right", width=max(9, 2 * len(str(total)) + 1), no_wrap=True)
    cells: list[RenderableType] = [
        one_line(label),
        ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), complete_style="cyan"),
        Text(f"{done}/{total}"),
    ]
    if not narrow:
        line.add_column(justify="right", width=CLOCK, no_wrap=True)
        cells.append(Text(clock))
    line.add_column(width=19 if narrow else 27, no_wrap=True, overflow="ellipsis")
    cells.append(Text.assemble(" ", one_line(tail)))
    line.add_row(*cells)
    return line


def alarm_line(alarms: Sequence[str]) -> Text:
    """The alarms that last; an empty line where there are none, so that nothing moves when one comes."""
    if not alarms:
        return Text("")
    many = f"{len(alarms)} alarms last" if len(alarms) > 1 else "1 alarm lasts"
    return one_line(f"{many}: {', '.join(alarms)}", style="bold yellow")


def start_table(parts: Mapping[str, tuple[int, int, float]]) -> Table:
    """What is on its way up: how many of each part are ready, of how many, and for how many seconds it has started."""
    shown = Table.grid(padding=(0, 2, 0, 0))
    shown.add_column(width=LABEL - 1, no_wrap=True, overflow="ellipsis")
    for width in (10, 8):
        shown.add_column(justify="right", width=width, no_wrap=True)
    shown.add_row(*(Text(word, style="dim") for word in ("starting", "ready", "seconds")))
    for name, (ready, of, seconds) in parts.items():
        up = Text(f"{ready} of {of}" if of else "-", style="green" if 0 < of <= ready else "")
        shown.add_row(one_line(name), up, Text(f"{seconds:.0f}"))
    return shown


def pool_table(pools: Mapping[str, Mapping[str, Any]], narrow: bool = False, plain: bool = False) -> Table:
    """A line a pool: engines that serve of those that are wanted, how full they are, what waits, how fast they are."""
    shown = Table.grid(padding=(0, 2, 0, 0), expand=True)
    shown.add_column(width=LABEL - 1, no_wrap=True, overflow="ellipsis")
    shown.add_column(justify="right", width=8, no_wrap=True)
    shown.add_column(width=4 if narrow else 15, no_wrap=True)
    for width in (7, 7, 8):
        shown.add_column(justify="right", width=width, no_wrap=True)
    shown.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    header = ("pool", "engines", "busy", "running", "waiting", "tokens/s", "")
    shown.add_row(*(Text(word, style="dim") for word in header))
    for name, pool in pools.items():
        up, of = pool.get("up"), pool.get("engines")
        few = up is not None and of is not None and up < of
        numbers = (number(pool.get(key), ".0f") for key in ("running", "waiting", "tokens_per_s"))
        shown.add_row(
            one_line(name),
            Text("-" if up is None or of is None else f"{up} of {of}", style="yellow" if few else ""),
            _busy(pool.get("busy"), 4 if narrow else 15, plain),
            *map(Text, numbers),
            one_line("" if narrow else _of_engines(pool), style="yellow"),
        )
    return shown


def _busy(share: float | None, width: int, plain: bool) -> Text:
    text = "   -" if share is None else f"{share:4.0%}"
    room = width - len(text) - 1
    if share is None or room < 1:
        return Text(text)
    eighths = round(min(1.0, share) * room * 8)
    bar = "#" * round(min(1.0, share) * room) if plain else "█" * (eighths // 8) + _FINE[eighths % 8].strip()
    return Text.assemble(text, " ", (bar, "cyan"))


def _of_engines(pool: Mapping[str, Any]) -> str:
    """What engines do that do not serve; where all serve, how often any was started again."""
    states = [life.get("state") for life in pool.get("lives") or ()]
    told = [f"{states.count(state)} {state}" for state in ("starting", "resting", "leaving") if state in states]
    restarts = pool.get("restarts") or 0
    return ", ".join(told) or (f"{restarts} restarts" if restarts > 1 else "1 restart" if restarts else "")


def last_step(metrics: Mapping[str, Any], history: Mapping[str, Sequence[float]], width: int, plain: bool) -> Table:
    """Raw beside refined, and how KL and pass rates moved over the last steps; dashes before the first one."""
    columns = min(SPARK, width - 55 if width >= NARROW else width - 49)
    shown = Table.grid(padding=(0, 1, 0, 0))
    shown.add_column(width=LABEL, no_wrap=True)
    for _ in PASSED:
        shown.add_column(justify="right", width=8, no_wrap=True)
    shown.add_column(width=4 if width >= NARROW else 1)
    shown.add_column(width=12, no_wrap=True)
    shown.add_column(width=max(1, columns), no_wrap=True)

    def line(label: str, cells: tuple[str, str], drawn: str, name: str, most: float | None, style: str = "") -> None:
        marks = sparkline(history.get(name, ()), columns, most, plain)
        shown.add_row(
            Text(label, style=style), *(Text(c, style=style) for c in cells), "",
            Text(drawn if marks else "", style="dim"), Text(marks, style="cyan"),
        )  # fmt: skip

    tokens = (number(metrics.get(name), ".0f") for name in ("y_o/tokens_mean", "y_r/tokens_mean"))
    raw, refined = (number(metrics.get(name), ".3f") for name in PASSED)
    line("last step", ("raw", "refined"), "KL", "kl/mean", None, style="dim")
    line("pass rate", (raw, refined), "raw pass", PASSED[0], 1.0)
    line("tokens", (next(tokens), next(tokens)), "refined pass", PASSED[1], 1.0)
    return shown


def number_lines(metrics: Mapping[str, Any], width: int) -> list[Text]:
    """What else the last step measured, in columns of fixed width."""
    each = max(1, (width + 2) // (CELL + 2))
    cells = [_cell(label, number(metrics.get(name), form)) for label, name, form in NUMBERS]
    each = min(each, 4)
    lines = [cells[i : i + each] for i in range(0, len(cells), each)]
    return [Text("  ").join(line) for line in lines]


def _cell(label: str, value: str) -> Text:
    return Text.assemble((label, "dim"), value.rjust(CELL - len(label)))


def held_out_line(scores: Mapping[str, Sequence[float]]) -> Text:
    """The share of samples that passed in evaluations: the first one of each set, then the newest."""
    told = []
    for of, shares in scores.items():
        pair = shares[:1] if len(shares) == 1 else (shares[0], shares[-1])
        told.append(f"{of + ' ' if of else ''}{' > '.join(f'{share:.1%}' for share in pair)}")
    return labelled("held out", "   ".join(told) or "-")


def labelled(label: str, text: str) -> Text:
    line = Text.assemble((label.ljust(LABEL + 1), "dim"), visible(text).replace("\n", " "))
    line.no_wrap = True
    line.overflow = "ellipsis"
    return line


def number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def sparkline(values: Sequence[float], columns: int, most: float | None = None, plain: bool = False) -> str:
    """The last values as marks whose height is a share of `most`, by default of the largest of them; 0 is the ground.

    A value that is not finite is a question mark.
    """
    values = list(values)[-columns:] if columns > 0 else []
    there = [v for v in values if abs(v) < float("inf")]
    top = most or max(there, default=0.0)
    marks = _PLAIN_MARKS if plain else _MARKS
    return "".join(
        "?" if not abs(v) < float("inf") else marks[1 if top <= 0 else max(1, min(8, round(max(0.0, v) / top * 8)))]
        for v in values
    )
