"""Pictures that are markup, so that they are there without scripts and on paper: intervals, and the flow of the ledger.

Only places and sizes are computed here; templates in page/ make SVG of them. Coordinates are percent of the width, or
units of FLOW_HEIGHT.
"""

from collections.abc import Sequence
from typing import Any

from trd_ray.score.stats import Estimate

FLOW_HEIGHT, FLOW_GAP, FLOW_WIDTH = 200.0, 16.0, 100.0
NODES = ("pass", "fail")


def intervals(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each line's `estimate` as places on one axis that holds zero: {zero, lines: [{low, value, high, ...}]}."""
    ends = [0.0]
    for line in lines:
        e: Estimate = line["estimate"]
        ends += [end for end in (e.low, e.value, e.high) if end is not None]
    low, high = min(ends), max(ends)
    room = (high - low or 1.0) * 0.06
    low, high = low - room, high + room

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    return {
        "zero": place(0.0),
        "lines": [
            line | {"low": place(e.low), "value": place(e.value), "high": place(e.high)}
            for line in lines
            for e in [line["estimate"]]
        ],
    }


def flow(cells: dict[str, int]) -> dict[str, Any] | None:
    """The four cells as bands between two nodes left (y_o) and two right (y_r). None where there is nothing.

    `cells` has the keys pass_pass, pass_fail, fail_pass and fail_fail.
    """
    n = sum(cells.values())
    if not n:
        return None
    scale = (FLOW_HEIGHT - FLOW_GAP) / n
    left = {raw: sum(cells[f"{raw}_{refined}"] for refined in NODES) for raw in NODES}
    right = {refined: sum(cells[f"{raw}_{refined}"] for raw in NODES) for refined in NODES}
    at_left = {"pass": 0.0, "fail": left["pass"] * scale + FLOW_GAP}
    at_right = {"pass": 0.0, "fail": right["pass"] * scale + FLOW_GAP}
    bands = []
    reached_left, reached_right = dict(at_left), dict(at_right)
    for raw in NODES:
        for refined in NODES:
            size = cells[f"{raw}_{refined}"] * scale
            a, b = reached_left[raw], reached_right[refined]
            reached_left[raw] += size
            reached_right[refined] += size
            if size:
                bands.append(
                    {"name": f"{raw}_{refined}", "path": _band(a, b, size), "count": cells[f"{raw}_{refined}"]}
                )
    return {
        "n": n,
        "height": FLOW_HEIGHT,
        "bands": bands,
        "left": [_node(raw, at_left[raw], left[raw], scale, n) for raw in NODES if left[raw]],
        "right": [_node(refined, at_right[refined], right[refined], scale, n) for refined in NODES if right[refined]],
    }


def _band(a: float, b: float, size: float) -> str:
    half = FLOW_WIDTH / 2
    over = f"M0,{a:.2f} C{half:g},{a:.2f} {half:g},{b:.2f} {FLOW_WIDTH:g},{b:.2f}"
    under = f"L{FLOW_WIDTH:g},{b + size:.2f} C{half:g},{b + size:.2f} {half:g},{a + size:.2f} 0,{a + size:.2f} Z"
    return f"{over} {under}"


def _node(name: str, top: float, count: int, scale: float, n: int) -> dict[str, Any]:
    size = count * scale
    # Two lines of text keep inside the picture, also beside a thin node.
    text = min(max(top + size / 2, 18.0), FLOW_HEIGHT - 20.0)
    return {
        "name": name,
        "top": round(top, 2),
        "size": round(size, 2),
        "count": count,
        "share": count / n,
        "text": text,
    }
