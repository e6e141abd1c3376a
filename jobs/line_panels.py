"""Panels of lines as one SVG, in rows: what figures of the jobs look like, on a light and on a dark page.

    rows of Panel (title, unit, name of a line -> points)  ->  drawn()  ->  SVG

A point is (x, value, lowest, highest); where the three differ, a band shows it. Every panel has axes of its own, and
values begin at 0, or below it.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH = 960
LEFT, TOP = 64, 84  # of the first panel's frame
PLOT_H = 168
BETWEEN, BELOW, MARGIN = 62, 92, 44
COLOURS = (("#d55e00", "#f08a3c"), ("#0072b2", "#56b4e9"), ("#009e73", "#3ccf9f"), ("#8a5aa8", "#c39be0"))
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-size: 14px; font-weight: 600 }
.end { text-anchor: end } .middle { text-anchor: middle }
.paper { fill: #fff } .grid { stroke: #ddd } .frame { stroke: #888; fill: none }
path { fill: none; stroke-width: 2 } .band { fill-opacity: 0.18 } path.grid { stroke-width: 1 }
"""

Point = tuple[float, float, float, float]  # x, value, lowest, highest


class LinePanel(NamedTuple):
    title: str
    unit: str
    lines: Mapping[str, Sequence[Point]]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, with about so many steps between them."""
    raw = (high - low) / about if high > low else max(abs(high), 1.0) / about
    unit = 10.0 ** np.floor(np.log10(raw))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [float(n * step) for n in range(first, max(last, first + 1) + 1)]


def drawn(rows: Sequence[Sequence[LinePanel]], looks: Mapping[str, str], about: str, x_name: str, note: str) -> str:
    """`looks` gives each line its class, in the order of COLOURS; `about` is told to who cannot see the picture."""
    height = TOP + len(rows) * (PLOT_H + BELOW) - BELOW + MARGIN
    style = STYLE + _colours(looks.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(about)}">',
        f'<style>{style}</style><rect class="paper" width="{WIDTH}" height="{height}"/>',
        *_legend(looks, note),
    ]
    for down, panels in enumerate(rows):
        width = (WIDTH - LEFT - 20 - BETWEEN * (len(panels) - 1)) // max(1, len(panels))
        for right, panel in enumerate(panels):
            x, y = LEFT + right * (width + BETWEEN), TOP + down * (PLOT_H + BELOW)
            there = {name: line for name, line in panel.lines.items() if line}
            if there:
                parts += _panel(x, y, width, panel._replace(lines=there), looks, x_name)
    return "\n".join([*parts, "</svg>", ""])


def _colours(classes: Iterable[str]) -> str:
    light, dark = [], []
    for number, name in enumerate(classes):
        dashes = "; stroke-dasharray: 5 3" if number >= 2 else ""
        on_light, on_dark = COLOURS[number]
        light.append(f".{name} {{ stroke: {on_light}{dashes} }} .band.{name} {{ fill: {on_light} }}")
        dark.append(f".{name} {{ stroke: {on_dark} }}")
    return (
        "\n".join(light) + "\n.band { stroke: none !important }\n@media (prefers-color-scheme: dark) {\n"
        "  text { fill: #e6e6e6 } .paper { fill: #14161a } .grid { stroke: #333 }\n  " + " ".join(dark) + "\n}\n"
    )


def _legend(looks: Mapping[str, str], note: str) -> list[str]:
    parts: list[str] = []
    x = LEFT
    for name, look in looks.items():
        parts += [f'<path class="{look}" d="M{x} 24h28"/>', _text(x + 36, 28, name)]
        x += 64 + 7 * len(name)
    return [*parts, _text(WIDTH - 20, 28, note, "end")]


def _panel(x: int, y: int, width: int, panel: LinePanel, looks: Mapping[str, str], x_name: str) -> list[str]:
    points = [one for line in panel.lines.values() for one in line]
    steps = [step for step, *_ in points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    marks = ticks(min(0.0, *(low for *_, low, _ in points)), max(high for *_, high in points))
    bottom, top = marks[0], marks[-1]

    def across(step: float) -> float:
        return round(x + (step - first) / (last - first) * width, 1)

    def down(value: float) -> float:
        return round(y + PLOT_H - (value - bottom) / (top - bottom) * PLOT_H, 1)

    def path(look: str, at: Iterable[tuple[float, float]], end: str = "") -> str:
        return f'<path class="{look}" d="M{"L".join(f"{across(s)} {down(value)}" for s, value in at)}{end}"/>'

    parts = [_text(x, y - 24, panel.title, "title"), _text(x, y - 8, panel.unit)]
    for mark in marks:
        parts.append(f'<path class="grid" d="M{x} {down(mark)}h{width}"/>')
        parts.append(_text(x - 6, down(mark) + 4, f"{mark:.6g}", "end"))
    for step in sorted({first, (first + last) // 2, last}):
        parts.append(_text(across(step), y + PLOT_H + 16, f"{step:.6g}", "middle"))
    parts.append(_text(x + width / 2, y + PLOT_H + 32, x_name, "middle"))
    for name, line in panel.lines.items():
        there = [(step, low) for step, _, low, _ in line]
        back = [(step, high) for step, _, _, high in reversed(line)]
        parts.append(path(f"band {looks[name]}", there + back, end="Z"))
        parts.append(path(looks[name], [(step, mean) for step, mean, *_ in line]))
    return [*parts, f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{PLOT_H}"/>']


def _text(x: float, y: float, text: str, look: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{look}">{escape(text)}</text>'
