"""Curves of a comparison as SVG files: one picture for each mode, score and axis, with no script and no other file.

comparison.json  ->  pictures()  ->  file name -> text of an SVG

A line goes through the means over runs; the bars are one standard error of them.
"""

from html import escape
from typing import Any

from trd_ray.record.markdown import visible

AXES = {"tokens": "generated tokens, thousands", "seconds": "seconds"}
SCORES = {"avg": "Avg@k", "pass": "Pass@k", "maj": "maj@k", "greedy": "greedy"}
# Okabe and Ito's, which differ for colour-blind eyes too; dashes tell apart what has the same colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("", "6 4", "2 3", "10 3 2 3")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820, 400, 52, 230, 34, 44


def pictures(found: dict[str, Any]) -> dict[str, str]:
    """Every picture that has a line with more than one point."""
    out = {}
    for mode in dict.fromkeys(one["mode"] for one in found.get("curves") or []):
        lines = [one for one in found["curves"] if one["mode"] == mode]
        for score, title in SCORES.items():
            for axis, label in AXES.items():
                drawn = [(one["method"], points) for one in lines if len(points := line_of(one, axis, score)) > 1]
                if drawn:
                    out[f"{mode}-{score}-{axis}.svg"] = _picture(f"{mode}: {title}", label, drawn)
    return out


def line_of(one: dict[str, Any], axis: str, score: str) -> list[tuple[float, float, float | None]]:
    """What was spent, the mean score and its standard error, at each evaluation that has it."""
    scale = 1000 if axis == "tokens" else 1
    return [(p[axis] / scale, *p["scores"][score]) for p in one["points"] if score in p["scores"]]


def _picture(title: str, label: str, lines: list[tuple[str, list[tuple[float, float, float | None]]]]) -> str:
    widest = max(x for _, points in lines for x, *_ in points) or 1.0
    step = _step(widest)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12" '
        'font-family="system-ui, sans-serif">',
        f"<title>{_text(title)} against {_text(label)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{_text(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{_text(label)}</text>',
    ]
    for percent in range(0, 101, 20):
        y = _y(percent / 100)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{percent}%</text>')
    for i in range(int(widest / step) + 1):
        x = _x(i * step, widest)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{i * step:g}</text>')
    for i, (method, points) in enumerate(lines):
        parts += _line(i, method, points, widest)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(i: int, method: str, points: list[tuple[float, float, float | None]], widest: float) -> list[str]:
    colour = COLOURS[i % len(COLOURS)]
    dash = f' stroke-dasharray="{DASHES[i // len(COLOURS) % len(DASHES)]}"' if i >= len(COLOURS) else ""
    path = " ".join(f"{'L' if n else 'M'}{_x(x, widest)} {_y(y)}" for n, (x, y, _) in enumerate(points))
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for x, y, error in points:
        at = _x(x, widest)
        if error:
            low, high = _y(max(0.0, y - error)), _y(min(1.0, y + error))
            parts.append(f'<path d="M{at} {low}V{high}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{at}" cy="{_y(y)}" r="2.5" fill="{colour}"/>')
    row = TOP + 6 + 16 * i
    left = WIDTH - RIGHT + 14
    parts.append(f'<path d="M{left} {row}h24" stroke="{colour}" stroke-width="2"{dash}/>')
    parts.append(f'<text x="{left + 30}" y="{row + 4}">{_text(method)}</text>')
    return parts


def _x(value: float, widest: float) -> float:
    return round(LEFT + value / widest * (WIDTH - LEFT - RIGHT), 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _step(widest: float) -> float:
    """1, 2 or 5 times a power of ten, of which at most eight fit."""
    size = 10.0 ** (len(f"{widest / 8:.0f}") - 2)
    while True:
        for part in (1, 2, 5):
            if widest / (part * size) <= 8:
                return part * size
        size *= 10


def _text(text: str) -> str:
    return escape(visible(text))
