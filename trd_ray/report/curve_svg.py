"""Curves of a comparison as SVG files: one picture for each mode, score and axis.

comparison.json  ->  pictures()  ->  file name -> text of an SVG

A line goes through the means over runs; the bars are one standard error of them.
"""

from typing import Any

from trd_ray.report.line_panels import LinePanel, drawn

AXES = {"tokens": "generated tokens, thousands", "seconds": "seconds"}
SCORES = {"avg": "Avg@k", "pass": "Pass@k", "maj": "maj@k", "greedy": "greedy"}


def pictures(found: dict[str, Any]) -> dict[str, str]:
    """Every picture that has a line with more than one point."""
    out = {}
    for mode in dict.fromkeys(one["mode"] for one in found.get("curves") or []):
        lines = [one for one in found["curves"] if one["mode"] == mode]
        for score, title in SCORES.items():
            for axis, label in AXES.items():
                of_methods = {one["method"]: points for one in lines if len(points := line_of(one, axis, score)) > 1}
                if of_methods:
                    out[f"{mode}-{score}-{axis}.svg"] = _picture(f"{mode}: {title}", label, of_methods)
    return out


def line_of(one: dict[str, Any], axis: str, score: str) -> list[tuple[float, float, float | None]]:
    """What was spent, the mean score and its standard error, at each evaluation that has it."""
    scale = 1000 if axis == "tokens" else 1
    return [(p[axis] / scale, *p["scores"][score]) for p in one["points"] if score in p["scores"]]


def _picture(title: str, label: str, lines: dict[str, list[tuple[float, float, float | None]]]) -> str:
    percent = {
        name: [(x, 100 * y, 100 * max(0.0, y - (e or 0)), 100 * min(1.0, y + (e or 0))) for x, y, e in points]
        for name, points in lines.items()
    }
    note = "means over runs, with one standard error"
    about = f"{title} against {label}"
    return drawn([[LinePanel(title, "percent", percent)]], about, label, note, bars=True, height=320)
