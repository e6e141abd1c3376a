import json

import pytest

from trd_ray.record.clock import Clock
from trd_ray.record.ledger import stage_seconds
from trd_ray.record.timeline import Timeline


class Hands:
    """A clock that goes when it is told to; `wall` may be set, as a time server does, without moving `monotonic`."""

    def __init__(self):
        self.now, self.shift = 1000.0, 0.0

    def wall(self) -> float:
        return self.now + self.shift

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands() -> Hands:
    return Hands()


def clock(hands: Hands, place, **options) -> Clock:
    made = Clock(Timeline(place / "timeline.json", hands.wall), wall=hands.wall, monotonic=hands.monotonic, **options)
    made.start()
    return made


def spend(clock: Clock, hands: Hands, **parts: float) -> None:
    for name, seconds in parts.items():
        with clock.span(name):
            hands.now += seconds


def row(start: float, step: int = 0, **columns) -> dict:
    y_o = {"start_s": start, "seconds": 2.0, "tokens": 10, "engine": "sampler-0"}
    y_r = {"start_s": start + 2, "seconds": 1.0, "tokens": 4, "engine": "refiner-0"}
    return {"step": step, "y_o": y_o, "y_r": y_r} | columns


def test_a_row_that_no_engine_has_answered_takes_no_part_in_the_times_of_its_step(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=5, train=3, sync=2)
    seconds = ticking.seconds([row(1001.0), row(1000.0, y_o=None, y_r=None)])
    assert seconds["seconds/step"] == 9 and seconds["seconds/sample"] == 2


def test_a_step_counted_by_hand(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=5, probe=1, train=3, sync=2)
    assert ticking.seconds([row(1000.0), row(1001.0)]) == {
        "seconds/step": 11,
        "seconds/wait": 5,
        "seconds/sample": 3,
        "seconds/verify": 0,
        "seconds/refine": 2,
        "seconds/train": 3,
        "seconds/sync": 2,
        "seconds/overhead": 4,  # 1000 to 1004 are sampled and refined, 1006 to 1009 trained
        "tokens_per_s/sampler": pytest.approx(20 / 3),
        "tokens_per_s/refiner": 4,
        "time_s": 1011,
    }


def test_diagnostics_are_part_of_their_step_and_no_overhead(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=4, diagnostics=5, train=3, sync=2)
    found = ticking.seconds([row(1000.0)])
    assert (found["seconds/diagnostics"], found["seconds/step"], found["seconds/overhead"]) == (5, 14, 14 - 3 - 5 - 3)
    spend(ticking, hands, wait=1, train=1, sync=1)
    assert "seconds/diagnostics" not in ticking.seconds([row(1014.0, step=1)])


def test_handing_the_gpus_over_is_told_wherever_it_happens_and_is_no_part_of_the_sync(hands, tmp_path):
    """Engines rest before the learner's part of the probe, and also if it is lost while rows are awaited."""
    ticking = clock(hands, tmp_path)
    for outer, parts in {
        "wait": {"rest": 1, "wake": 2},
        "probe": {"rest": 1},
        "train": {},
        "sync": {"wake": 4},
    }.items():
        with ticking.span(outer):
            spend(ticking, hands, **parts)
            hands.now += 3
    seconds = ticking.seconds([row(1000.0)])
    assert {name: seconds[f"seconds/{name}"] for name in ("rest", "wake", "sync", "train", "wait", "step")} == {
        "rest": 2, "wake": 6, "sync": 3, "train": 3, "wait": 6, "step": 20,
    }  # fmt: skip
    assert seconds["time_s"] == 1020


def test_an_evaluation_and_a_checkpoint_between_steps_are_no_part_of_either(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=1, train=1, sync=1)
    ticking.seconds([row(1000.0)])
    spend(ticking, hands, evaluate=100, record=0.5, checkpoint=40)
    spend(ticking, hands, wait=4, train=1, sync=1)
    second = ticking.seconds([row(1143.5, step=1)])
    assert second["seconds/step"] == 6.5 and second["seconds/wait"] == 4
    assert second["seconds/overhead"] == 6.5 - 3 - 1


def test_the_first_step_begins_with_its_first_sample_and_the_second_with_the_end_of_the_first(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=20, train=1, sync=1)
    assert ticking.seconds([row(1015.0)])["seconds/step"] == 7
    spend(ticking, hands, wait=20, train=1, sync=1)
    assert ticking.seconds([row(1040.0, step=1)])["seconds/step"] == 22


def test_the_rows_of_a_corpus_tell_nothing_of_this_run_s_time(hands, tmp_path):
    ticking = clock(hands, tmp_path, sampled=False)
    spend(ticking, hands, wait=1, train=2, sync=0)
    seconds = ticking.seconds([row(5.0)])
    assert seconds["seconds/step"] == 3 and seconds["seconds/sample"] == 0 and "tokens_per_s/sampler" not in seconds
    ticking.draw([row(5.0)])
    assert "sampler-0" not in ticking.timeline.text()


def test_a_span_within_a_span_is_drawn_and_not_counted(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    with ticking.span("wait"):
        spend(ticking, hands, sync=3)  # engines that restarted meanwhile
        hands.now += 1
    spend(ticking, hands, train=1, sync=1)
    assert ticking.seconds([row(1000.0)])["seconds/sync"] == 1
    assert [name for name, _, _ in ticking.timeline.spans["driver"]] == ["sync", "wait", "train", "sync"]


def test_a_wall_clock_that_is_set_meanwhile_changes_no_length(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    with ticking.span("wait"):
        hands.now += 2
        hands.shift = -3600.0
    assert ticking.spans[0].seconds == 2


def test_the_busy_time_is_the_ledger_s(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=9, train=1, sync=1)
    rows = [row(1000.5), row(1004.25)]
    measured = ticking.seconds(rows)
    expected = stage_seconds(rows, (1000.5, 1011.0), others=[(1009.0, 1010.0)])
    assert measured["seconds/sample"] == expected["sample"] and measured["seconds/refine"] == expected["refine"]
    assert measured["seconds/overhead"] == 10.5 - expected["busy"]


def test_an_error_in_a_span_leaves_it_in_the_timeline(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    with pytest.raises(KeyboardInterrupt), ticking.span("train"):
        hands.now += 5
        raise KeyboardInterrupt
    ticking.close()
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert [e["dur"] for e in events if e["name"] == "train"] == [5_000_000]


def test_a_step_is_drawn_with_its_rows_and_ranks(hands, tmp_path):
    ticking = clock(hands, tmp_path)
    spend(ticking, hands, wait=3, train=3, sync=2)
    ticking.seconds([row(1000.0)])
    ticking.draw([row(1000.0)], ranks=[(0, "train", 1003.0, 1006.0), (1, "train", 1003.5, 1006.0)])
    text = ticking.timeline.text()
    for name in ("step 1", "sampler-0", "refiner-0", "rank 0", "rank 1"):
        assert f'"{name}"' in text
