"""Panels of lines as one SVG, in rows: curves of comparisons and figures of jobs, on a light and a dark page.

    rows of LinePanel (title, unit, name of a line -> points)  ->  drawn()  ->  SVG, with no script and no other file

A point is (x, value, lowest, highest); where the three differ, a band or a bar shows it. Every panel has axes of its
own, and values begin at 0, or below it. A name has the same look in all panels.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from trd_ray.record.markdown import visible

WIDTH = 960
LEFT, TOP = 64, 84  # of the first panel's frame, below one row of names
PLOT_H = 168
BETWEEN, BELOW, MARGIN = 62, 92, 44
NAMES_H = 18  # a row of names
# Okabe and Ito's, for colour-blind eyes too, on light and on dark; dashes tell apart what has the same one.
COLOURS = (
    ("#d55e00", "#f08a3c"), ("#0072b2", "#56b4e9"), ("#009e73", "#3ccf9f"), ("#cc79a7", "#e3a6c8"),
    ("#b07d00", "#e69f00"), ("#2a8fc7", "#8fd0f5"), ("#222222", "#e6e6e6"),
)  # fmt: skip
DASHES = ("", "6 4", "2 3", "10 3 2 3")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 14px; font-weight: 600 }
.end { text-anchor: end } .middle { text-anchor: middle }
.paper { fill: #fff } .grid { stroke: #ddd } .frame { stroke: #888; fill: none }
path { fill: none; stroke-width: 2 } .band { fill-opacity: 0.18 } path.grid, path.bar { stroke-width: 1 }
"""

Point = tuple[float, float, float, float]  # x, value, lowest, highest


class LinePanel(NamedTuple):
    title: str
    unit: str
    lines: Mapping[str, Sequence[Point]]


def ticks(low: float, high: float, factors: Sequence[float] = (1, 2, 2.5, 5, 10), about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, with about so many steps between them."""
    raw = (high - low) / about if high > low else max(abs(high), 1.0) / about
    unit = 10.0 ** np.floor(np.log10(raw))
    step = unit * next(factor for factor in factors if factor * unit >= raw * (1 - 1e-9))
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [float(n * step) for n in range(first, max(last, first + 1) + 1)]


def drawn(
    rows: Sequence[Sequence[LinePanel]], about: str, x_name: str, note: str, *, bars: bool = False, height: int = PLOT_H
) -> str:
    """`about` is told to who cannot see the picture; `bars` in place of bands, where lines are many and points few."""
    there = [[panel._replace(lines={k: v for k, v in panel.lines.items() if v}) for panel in panels] for panels in rows]
    looks = _looks(panel for panels in there for panel in panels)
    names, names_h = _names(looks, note)
    whole = TOP + names_h + len(rows) * (height + BELOW) - BELOW + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" width="{WIDTH}" height="{whole}" '
        f'role="img" aria-label="{_safe(about)}">',
        f'<style>{STYLE}{_colours(len(looks))}</style><rect class="paper" width="{WIDTH}" height="{whole}"/>',
        *names,
    ]
    for down, panels in enumerate(there):
        width = (WIDTH - LEFT - 20 - BETWEEN * (len(panels) - 1)) // max(1, len(panels))
        for right, panel in enumerate(panels):
            if panel.lines:
                frame = Frame(LEFT + right * (width + BETWEEN), TOP + names_h + down * (height + BELOW), width, height)
                parts += _panel(frame, panel, looks, x_name, bars)
    return "\n".join([*parts, "</svg>", ""])


def _looks(panels: Iterable[LinePanel]) -> dict[str, str]:
    """The class of each name, in the order in which they come."""
    return {name: f"line{n}" for n, name in enumerate(dict.fromkeys(name for panel in panels for name in panel.lines))}


def _colours(count: int) -> str:
    light, dark = [], []
    for n in range(count):
        on_light, on_dark = COLOURS[n % len(COLOURS)]
        dash = DASHES[n // len(COLOURS) % len(DASHES)]
        dashed = f"path.line{n}:not(.bar) {{ stroke-dasharray: {dash} }}" if dash else ""
        light.append(f".line{n} {{ stroke: {on_light} }} .band.line{n}, .dot.line{n} {{ fill: {on_light} }} {dashed}")
        dark.append(f".line{n} {{ stroke: {on_dark} }} .band.line{n}, .dot.line{n} {{ fill: {on_dark} }}")
    return (
        "\n".join(light) + "\n.band { stroke: none !important }\n@media (prefers-color-scheme: dark) {\n"
        "  text { fill: #e6e6e6 } .paper { fill: #14161a } .grid { stroke: #333 }\n  " + " ".join(dark) + "\n}\n"
    )


def _names(looks: Mapping[str, str], note: str) -> tuple[list[str], int]:
    """The names beside their lines, in as many rows as they take, and the height of those after the first."""
    parts = [_text(WIDTH - 20, 18, note, "end")]
    x, y = LEFT, 28
    for name, look in looks.items():
        wide = 64 + 7 * len(visible(name))
        if x > LEFT and x + wide > WIDTH - (20 if y > 28 else 36 + 6 * len(note)):
            x, y = LEFT, y + NAMES_H
        parts += [f'<path class="{look}" d="M{x} {y - 4}h28"/>', _text(x + 36, y, name)]
        x += wide
    return parts, y - 28


class Frame(NamedTuple):
    x: int
    y: int
    width: int
    height: int


def _panel(frame: Frame, panel: LinePanel, looks: Mapping[str, str], x_name: str, bars: bool) -> list[str]:
    x, y, width, height = frame
    points = [one for line in panel.lines.values() for one in line]
    steps = [step for step, *_ in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    marks = ticks(min(0.0, *(low for *_, low, _ in points)), max(high for *_, high in points))
    bottom, top = marks[0], marks[-1]

    def across(step: float) -> float:
        return round(x + (step - first) / (last - first) * width, 1)

    def down(value: float) -> float:
        return round(y + height - (value - bottom) / (top - bottom) * height, 1)

    def path(look: str, at: Iterable[tuple[float, float]], end: str = "") -> str:
        return f'<path class="{look}" d="M{"L".join(f"{across(s)} {down(value)}" for s, value in at)}{end}"/>'

    parts = [_text(x, y - 24, panel.title, "title"), _text(x, y - 8, panel.unit)]
    for mark in marks:
        parts.append(f'<path class="grid" d="M{x} {down(mark)}h{width}"/>')
        parts.append(_text(x - 6, down(mark) + 4, f"{mark:.6g}", "end"))
    for step in ticks(first, last, factors=(1, 2, 5, 10)):
        if first <= step <= last:
            parts.append(_text(across(step), y + height + 16, f"{step:.6g}", "middle"))
    parts.append(_text(x + width / 2, y + height + 32, x_name, "middle"))
    for name, line in panel.lines.items():
        look = looks[name]
        if bars:
            parts += [path(f"bar {look}", [(step, low), (step, high)]) for step, _, low, high in line if low < high]
        else:
            there = [(step, low) for step, _, low, _ in line]
            back = [(step, high) for step, _, _, high in reversed(line)]
            parts.append(path(f"band {look}", there + back, end="Z"))
        parts.append(path(look, [(step, mean) for step, mean, *_ in line]))
        if bars:
            parts += [f'<circle class="dot {look}" cx="{across(s)}" cy="{down(v)}" r="2.5"/>' for s, v, *_ in line]
    return [*parts, f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}"/>']


def _text(x: float, y: float, text: str, look: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{look}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(visible(text))
