"""timeline.json, thinned until a page can hold it: who worked when, and who waited.

    timeline.json  ->  lanes_of()  ->  lanes of slices in milliseconds, and each lane's seconds of work and of waiting

Slices of one lane and kind with gaps below a resolution become one. The resolution doubles from 1 ms until at most
MOST_SLICES are left, and the page says it. The seconds are counted before that, from the file.
"""

import json
from pathlib import Path
from typing import Any

MOST_SLICES = 6_000
FIRST_MS = 1.0
SHORT = ("steps",)  # a lane that repeats what the others hold


def lanes_of(place: Path) -> dict[str, Any] | None:
    """None where there is no timeline, or an empty one. Raises ValueError for one that is damaged."""
    if not place.is_file():
        return None
    try:
        tree = json.loads(place.read_text())
        lanes = _read(tree["traceEvents"])
        marks = [[e["ts"] / 1000, e["name"]] for e in tree["traceEvents"] if e["ph"] == "i"]
    except (LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"timeline.json is damaged ({e!r})") from e
    if not any(lane["slices"] for lane in lanes):
        return None
    resolution = FIRST_MS
    thin = [_merged(lane["slices"], resolution) for lane in lanes]
    while sum(map(len, thin)) > MOST_SLICES:
        resolution *= 2
        thin = [_merged(slices, resolution) for slices in thin]
    kinds = sorted({kind for slices in thin for _, _, kind in slices})
    number = {kind: i for i, kind in enumerate(kinds)}
    shown = [
        {"group": lane["group"], "lane": lane["lane"], "work_s": lane["work_s"], "wait_s": lane["wait_s"]}
        | {"slices": [[round(begin), round(end - begin, 1), number[kind]] for begin, end, kind in slices]}
        for lane, slices in zip(lanes, thin, strict=True)
    ]
    end = max(slices[-1][1] for slices in thin if slices)
    return {"lanes": shown, "kinds": kinds, "marks": marks, "end_ms": round(end), "resolution_ms": resolution}


def _read(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[int, str] = {}
    lanes: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        key = (event["pid"], event["tid"])
        if event["name"] == "process_name":
            groups[event["pid"]] = event["args"]["name"]
        elif event["name"] == "thread_name":
            lanes[key] = {"lane": event["args"]["name"], "slices": [], "work_s": 0.0, "wait_s": 0.0}
        elif event["ph"] == "X":
            lane = lanes[key]
            begin, length = event["ts"] / 1000, event["dur"] / 1000
            lane["wait_s" if event["cat"] == "wait" else "work_s"] += length / 1000
            lane["slices"].append((begin, begin + length, "wait" if event["cat"] == "wait" else event["name"]))
    out = []
    for (pid, _), lane in sorted(lanes.items()):
        if lane["lane"] not in SHORT and lane["slices"]:
            out.append(lane | {"group": groups.get(pid, ""), "slices": sorted(lane["slices"])})
    return out


def _merged(slices: list[tuple[float, float, str]], resolution: float) -> list[tuple[float, float, str]]:
    """Slices in order; what is shorter than the resolution joins the one before, or is left out."""
    out: list[tuple[float, float, str]] = []
    for begin, end, kind in slices:
        if out and kind == out[-1][2] and begin - out[-1][1] < resolution:
            out[-1] = (out[-1][0], max(end, out[-1][1]), kind)
        elif out and end - begin < resolution and begin - out[-1][1] < resolution:
            out[-1] = (out[-1][0], max(end, out[-1][1]), out[-1][2])
        else:
            out.append((begin, end, kind))
    return out
