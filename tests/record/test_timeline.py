import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from trd_ray.record.timeline import MAX_BYTES, Timeline


def lanes(place: Path) -> dict[str, list[tuple[float, float, str, str]]]:
    """lane -> (begin, end, name, category) in seconds, as a viewer would read the file."""
    events = json.loads(place.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            slice_ = (e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6, e["name"], e["cat"])
            found[names[e["pid"], e["tid"]]].append(slice_)
    return found


def timeline(tmp_path: Path, began: float = 100.0) -> Timeline:
    return Timeline(tmp_path / "timeline.json", lambda: began)


def test_requests_that_overlap_are_one_slice_with_their_count_and_what_is_between_is_waiting(tmp_path):
    t = timeline(tmp_path)
    t.work("engines", "sampler-0", "sample", [(100.0, 103.0), (101.0, 104.0), (110.0, 111.0)])
    t.save()
    assert lanes(t.place)["sampler-0"] == [
        (0, 4, "sample", "work"),
        (4, 10, "wait", "wait"),
        (10, 11, "sample", "work"),
    ]
    events = json.loads(t.place.read_text())["traceEvents"]
    assert [e["args"] for e in events if e["name"] == "sample"] == [{"sample": 2}, {"sample": 1}]


def test_an_engine_that_samples_and_refines_at_once_has_one_lane_without_overlaps(tmp_path):
    t = timeline(tmp_path)
    t.work("engines", "sampler-0", "sample", [(100.0, 110.0)])
    t.work("engines", "sampler-0", "refine", [(104.0, 106.0), (109.0, 112.0)])
    t.save()
    assert [(b, e, name) for b, e, name, _ in lanes(t.place)["sampler-0"]] == [
        (0, 4, "sample"),
        (4, 6, "refine + sample"),
        (6, 9, "sample"),
        (9, 10, "refine + sample"),
        (10, 12, "refine"),
    ]


def test_rows_of_a_later_step_that_came_before_an_earlier_one_s_last_find_their_place(tmp_path):
    t = timeline(tmp_path)
    t.work("engines", "e", "sample", [(100.0, 101.0), (105.0, 109.0)])
    t.work("engines", "e", "sample", [(102.0, 103.0), (108.0, 112.0)])
    assert t.lanes["engines", "e"]["sample"] == [[100, 101, 1], [102, 103, 1], [105, 112, 2]]


def test_the_merged_intervals_are_what_a_fine_grid_counts(tmp_path):
    rng = np.random.default_rng(0)
    t = timeline(tmp_path)
    grid = np.arange(100, 160, 1e-2) + 5e-3
    covered = np.zeros(len(grid), dtype=bool)
    for step in range(6):
        starts = 100 + 8 * step + rng.uniform(0, 12, 8)
        spans = [(s, s + d) for s, d in zip(starts, rng.uniform(0, 2, 8), strict=True)]
        t.work("engines", "e", "sample", spans)
        for begin, end in spans:
            covered |= (grid >= begin) & (grid < end)
    busy = t.lanes["engines", "e"]["sample"]
    assert sum(end - begin for begin, end, _ in busy) == pytest.approx(covered.sum() * 1e-2, abs=0.3)
    assert sum(count for _, _, count in busy) == 48
    assert all(one[1] < other[0] for one, other in zip(busy, busy[1:], strict=False))


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    first = timeline(tmp_path)
    first.mark("start")
    first.span("train", 101.0, 103.0)
    first.work("engines", "sampler-0", "sample", [(100.0, 104.0)])
    first.work("engines", "sampler-0", "refine", [(102.0, 106.0)])
    first.save()
    before = first.place.read_text()
    second = timeline(tmp_path, began=500.0)
    assert second.text() == before
    second.mark("resumed after step 1")
    second.work("engines", "sampler-0", "sample", [(510.0, 511.0)])
    second.span("train", 512.0, 513.0)
    second.save()
    found = lanes(second.place)
    assert [(b, e) for b, e, *_ in found["driver"]] == [(1, 3), (412, 413)]
    assert found["sampler-0"][-2:] == [(6, 410, "wait", "wait"), (410, 411, "sample", "work")]


def test_work_that_took_no_time_at_all_comes_back(tmp_path):
    for moment in np.random.default_rng(0).uniform(1.7e9, 1.7e9 + 9, 100):
        first = timeline(tmp_path, began=1.7e9)
        first.work("verifier", "verifier", "verify y_o", [(moment, moment)])
        first.save()
        second = timeline(tmp_path)
        second.save()
        assert [name for *_, name, _ in lanes(second.place)["verifier"]] == ["verify y_o"]
        second.place.unlink()


def test_a_damaged_file_is_begun_anew(tmp_path):
    head = '{"otherData": {"began_s": 0, "resolution_s": 0.001, "shortest_s": 0.001}, "traceEvents": [%s]}'
    unknown = '{"ph": "X", "pid": 9, "tid": 0, "ts": 0, "dur": 1, "name": "x", "cat": "work", "args": {"x": 1}}'
    lane = '{"ph": "M", "pid": 9, "tid": 0, "name": "thread_name", "args": {"name": "x"}}'
    no_time = (head % "").replace('"began_s": 0', '"began_s": "noon"')
    for damage in ("", "{", "[]", '{"otherData": {}}', head % f"{lane}, {unknown}", no_time):
        (tmp_path / "timeline.json").write_text(damage)
        t = timeline(tmp_path)
        t.span("train", 101.0, 103.0)
        t.save()
        assert len(lanes(t.place)["driver"]) == 1


def test_a_file_that_is_too_large_to_be_a_timeline_is_begun_anew(tmp_path):
    first = timeline(tmp_path)
    first.marks = [("x" * 1000, 100.0)] * 6000
    first.place.write_text(first._text())
    second = timeline(tmp_path)
    assert second.marks == [] and len(second.text()) < 1000


def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path, monkeypatch):
    (tmp_path / "timeline.json").write_text("{}")

    def denied(path: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", denied)
    assert timeline(tmp_path).spans == {"driver": [], "steps": []}


def test_a_file_that_cannot_be_written_is_said_and_is_no_error(tmp_path, capsys):
    t = timeline(tmp_path / "gone")
    t.close()
    assert "timeline.json could not be written (No such file" in capsys.readouterr().out


def test_lanes_stand_in_the_order_that_people_count(tmp_path):
    t = timeline(tmp_path)
    for number in (10, 2, 0):
        t.work("engines", f"sampler-{number}", "sample", [(100.0, 101.0)])
    t.work("learner", "rank 0", "train", [(100.0, 101.0)])
    t.work("verifier", "verifier", "verify y_o", [(100.0, 101.0)])
    t.save()
    assert list(lanes(t.place)) == ["sampler-0", "sampler-2", "sampler-10", "verifier", "rank 0"]


@pytest.mark.parametrize("rows, engines, ranks", [(64, 2, 1), (1024, 32, 8)])
def test_three_hundred_steps_fit_whatever_their_rows(tmp_path, rows, engines, ranks):
    """Requests one after the other and short verdicts, far apart: little that overlaps, so the worst there is."""
    rng = np.random.default_rng(0)
    t = timeline(tmp_path, began=0.0)
    seconds = 60.0
    for step in range(300):
        begin = step * seconds
        of_rows = []
        for i, at in enumerate(np.sort(rng.uniform(0, seconds * 0.6, rows)) + begin):
            y_o = {"start_s": at, "seconds": 0.01, "engine": f"sampler-{i % engines}"}
            y_r = {"start_s": at + 1, "seconds": 0.01, "engine": f"refiner-{i % engines}"}
            y_o |= {"verify_start_s": at + 0.5, "verify_seconds": 0.002}
            y_r |= {"verify_start_s": at + 2, "verify_seconds": 0.002}
            of_rows.append({"y_o": y_o, "y_r": y_r})
        t.rows(of_rows)
        for name, a, b in (("wait", 0, 40), ("probe", 40, 41), ("train", 41, 55), ("sync", 55, 58), ("record", 58, 59)):
            t.span(name, begin + a, begin + b)
        t.step(f"step {step + 1}", begin, begin + seconds)
        for rank in range(ranks):
            t.work("learner", f"rank {rank}", "train", [(begin + 41, begin + 55)])
            t.work("learner", f"rank {rank}", "sync", [(begin + 55, begin + 58)])
    t.save()
    size = t.place.stat().st_size
    assert size <= MAX_BYTES < 5_000_000
    found = lanes(t.place)
    assert len(found["steps"]) == 300 and len(found["driver"]) == 1500 and len(found) == 3 + 2 * engines + ranks
    for slices in found.values():  # nothing overlaps in a lane: a viewer draws all of it
        assert all(one[1] <= other[0] + 1e-6 for one, other in zip(slices, slices[1:], strict=False))
    counted = defaultdict(int)
    for event in json.loads(t.place.read_text())["traceEvents"]:
        if event["ph"] == "X" and event["pid"]:
            for kind, count in event.get("args", {}).items():
                counted[kind] += count
    assert counted["sample"] == counted["refine"] == counted["verify y_o"] == 300 * rows


def test_the_longest_of_runs_fits_too(tmp_path):
    t = timeline(tmp_path, began=0.0)
    for step in range(60_000):
        t.span("train", step * 2.0, step * 2.0 + 1.5)
        t.step(f"step {step + 1}", step * 2.0, step * 2.0 + 2.0)
    t.save()
    assert t.place.stat().st_size <= MAX_BYTES
