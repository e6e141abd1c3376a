import json
import random

import pytest

from recorded_runs import BEGAN
from trd_ray.record.timeline import Timeline
from trd_ray.report.drawn import flow, intervals
from trd_ray.report.thinned import MOST_SLICES, lanes_of
from trd_ray.score.stats import Estimate


def test_a_long_timeline_is_thinned_until_it_fits_and_its_sums_stay(tmp_path):
    rng = random.Random(0)
    timeline = Timeline(tmp_path / "timeline.json", wall=lambda: BEGAN)
    for lane in ("sampler-0", "sampler-1"):
        at = BEGAN
        for _ in range(6_000):
            length, gap = rng.uniform(0.01, 0.4), rng.uniform(0.002, 0.2)
            timeline.work("engines", lane, "sample", [(at, at + length)])
            at += length + gap
    timeline.save()
    found = lanes_of(tmp_path / "timeline.json")
    assert found["resolution_ms"] > 1
    assert sum(len(lane["slices"]) for lane in found["lanes"]) <= MOST_SLICES
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    work = sum(event["dur"] for event in events if event.get("cat") == "work") / 1e6
    assert sum(lane["work_s"] for lane in found["lanes"]) == pytest.approx(work)
    for lane in found["lanes"]:  # the slices are in order and cover the whole of it
        assert all(a[0] <= b[0] for a, b in zip(lane["slices"], lane["slices"][1:], strict=False))
        assert lane["slices"][-1][0] + lane["slices"][-1][1] == pytest.approx(found["end_ms"], rel=0.02)


def test_the_bands_of_the_ledger_fill_its_nodes():
    cells = {"pass_pass": 50, "pass_fail": 5, "fail_pass": 30, "fail_fail": 15}
    found = flow(cells)
    assert found["n"] == 100 and {band["name"]: band["count"] for band in found["bands"]} == cells
    assert [node["count"] for node in (*found["left"], *found["right"])] == [55, 45, 80, 20]
    for side in ("left", "right"):
        assert sum(node["size"] for node in found[side]) == pytest.approx(found["height"] - 16)
    assert flow(dict.fromkeys(cells, 0)) is None


def test_intervals_share_one_axis_that_holds_zero():
    lines = [{"estimate": Estimate(0.2, 0.1, 0.3)}, {"estimate": Estimate(0.4, None, None)}]
    found = intervals(lines)
    first, second = found["lines"]
    assert 0 < found["zero"] < first["low"] < first["value"] < first["high"] < second["value"] < 100
    assert second["low"] is None
