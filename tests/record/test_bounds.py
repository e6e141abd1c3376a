"""How short a step can be: by the formulas, and by a timetable of the loop that is played step by step."""

import numpy as np
import pytest

from trd_ray.record.bounds import StepSeconds, binding, bound, limits, of_run, slowest, steady


def played(s: StepSeconds, staleness: int, in_flight: str, steps: int = 4000) -> float:
    """Mean seconds of a step in a run whose slowest row is always as slow, and in which all else takes no time."""
    published = [0.0]  # when each version is in the engines
    for step in range(steps):
        sampled_from = published[max(0, step - staleness)]
        trained = max(published[step], sampled_from + s.sample + s.refine) + s.train
        # Rows of a later step begin with each version; to drain is to wait for them before the next one.
        drained = published[step] + s.sample if in_flight == "drain" else 0.0
        published.append(max(trained, drained))
    return (published[-1] - published[steps // 2]) / (steps - steps // 2)


@pytest.mark.parametrize("in_flight", ["keep", "drain"])
@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_the_bound_is_what_a_run_without_overhead_takes(staleness, in_flight):
    rng = np.random.default_rng(staleness)
    for numbers in rng.lognormal(0, 1, (30, 3)):
        s = StepSeconds(*numbers.tolist())
        assert bound(s, staleness, in_flight) == pytest.approx(played(s, staleness, in_flight), rel=2e-3)


def test_on_policy_everything_comes_one_after_the_other_whatever_happens_to_requests_under_way():
    s = StepSeconds(30.0, 5.0, 8.0)
    assert bound(s, 0, "keep") == bound(s, 0, "drain") == 43.0
    assert binding(s, 0, "keep") == binding(s, 0, "drain") == "row"


@pytest.mark.parametrize(
    ("seconds", "staleness", "keep", "drain"),
    [
        ((30.0, 5.0, 8.0), 1, (21.5, "row"), (30.0, "drain")),
        ((30.0, 5.0, 8.0), 4, (8.6, "row"), (30.0, "drain")),
        ((30.0, 25.0, 8.0), 1, (31.5, "row"), (31.5, "row")),
        ((10.0, 5.0, 20.0), 1, (20.0, "train"), (20.0, "train")),
        ((10.0, 0.0, 10.0), 1, (10.0, "row"), (10.0, "row")),
    ],
)
def test_which_of_the_three_binds(seconds, staleness, keep, drain):
    s = StepSeconds(*seconds)
    for in_flight, expected in (("keep", keep), ("drain", drain)):
        assert (bound(s, staleness, in_flight), binding(s, staleness, in_flight)) == expected
        assert max(limits(s, staleness, in_flight).values()) == expected[0]


def fact(step: int, sample: float | None, refine: float | None) -> dict:
    return {"step": step, "y_o_seconds": sample, "y_r_seconds": refine}


def test_the_slowest_row_is_the_one_that_takes_longest_in_all():
    assert slowest([fact(1, 5.0, 1.0), fact(1, 4.0, 3.0), fact(1, None, None)]) == (4.0, 3.0)
    assert slowest([fact(1, 5.0, None), fact(1, 4.0, 0.5)]) == (5.0, 0.0)
    assert slowest([fact(1, None, None)]) is None


def test_a_run_is_its_medians_over_the_steps_that_are_recorded():
    facts = [fact(step, float(step), 1.0 if step < 3 else None) for step in (1, 1, 2, 3)] + [fact(4, 99.0, 99.0)]
    metrics = [{"step": step, "seconds/train": 0.5 * step} for step in (1, 2, 3)]
    assert of_run(facts, metrics) == StepSeconds(2.0, 1.0, 1.0)
    assert of_run(facts, [{"step": 1}]) is None
    assert of_run([], metrics) is None


def test_steps_that_were_sampled_before_a_run_or_in_an_evaluation_are_left_out():
    lines = [{"step": step} | ({"evaluation/avg": 0.5} if step == 5 else {}) for step in range(1, 11)]
    assert [line["step"] for line in steady(lines, 0)] == [2, 3, 4, 5, 7, 8, 9, 10]
    assert [line["step"] for line in steady(lines, 1)] == [3, 4, 5, 8, 9, 10]
    assert [line["step"] for line in steady(lines, 1, steps=10)] == [3, 4, 5, 8, 9], (
        "while the last k go on, nothing is sampled"
    )
    assert [line["step"] for line in steady(lines[:3], 1, steps=3)] == [3], "or there would be none"
    assert steady(lines[:2], 1) == []
