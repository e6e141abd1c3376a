import math

import numpy as np
import pytest
from made_steps import random_rows, response, row, scored, step_table

from trd_ray.diagnostics.departure import Departures, departures
from trd_ray.diagnostics.step_rows import StepRows


def of(*entries: dict):
    return StepRows(step_table(*(row(i, scored=[e]) for i, e in enumerate(entries)))).scored


def y_o(teacher: list[float], student: list[float] | None = None, view: str = "vanilla") -> dict:
    return scored(
        "y_o", view, kl=[1.0] * len(teacher), teacher_nll=teacher, student_nll=student or [0.1] * len(teacher)
    )


def test_a_teacher_leaves_at_the_first_token_that_it_finds_unlikely_and_the_student_does_not():
    found = departures(
        of(
            y_o([0.1, 5.0, 6.0]),  # below 1% at the second
            y_o([4.0, 4.5, 4.6]),  # never below 1%: ln 100 = 4.605
            y_o([5.0, 5.0], [4.0, 1.0]),  # the first is unusual for both
            y_o([9.0]),
        )
    )
    assert found.tolist() == [1, -1, 1, 0]


def test_the_rule_is_what_a_loop_over_tokens_gives():
    rng = np.random.default_rng(0)
    for size in (1, 2, 30, 200):
        teacher, student = rng.exponential(2, size).astype(np.float16), rng.exponential(1, size).astype(np.float16)
        expected = next(
            (
                t
                for t in range(size)
                if float(teacher[t]) > math.log(100) and float(teacher[t]) - float(student[t]) > math.log(10)
            ),
            -1,
        )
        assert departures(of(y_o(teacher.tolist(), student.tolist()))).tolist() == [expected]


def test_figures_are_by_verdict_and_the_signal_is_told_before_and_after():
    kl = {"kl": [0.0, 0.0, 4.0, 2.0]}
    left = y_o([0.1, 0.1, 7.0, 7.0]) | kl
    table = step_table(
        row(0, y_o=response([1] * 4, passed=False), scored=[left]),
        row(1, y_o=response([1] * 4, passed=True), scored=[y_o([0.1] * 4)]),
        row(2, y_o=response([1] * 2, passed=False), scored=[y_o([9.0, 0.1])]),
        row(3, y_o=response([1], passed=None), scored=[y_o([0.1])]),
    )
    rows = StepRows(table)
    gathered = Departures()
    gathered.add(rows.scored, rows.passed["y_o"])
    found = gathered.found()["y_o_vanilla"]
    assert (found["all"]["rows"], found["all"]["departed"]) == (4, 0.5)
    assert (found["failed"]["rows"], found["failed"]["departed"]) == (2, 1.0)
    assert found["failed"]["relative"]["p50"] == 0.25 and found["failed"]["token"]["p50"] == 1.0
    assert found["failed"]["kl_before"] == 0.0 and found["failed"]["kl_after"] == pytest.approx((4 + 2 + 1 + 1) / 4)
    assert found["passed"] == {
        "rows": 1, "departed": 0.0, "relative": None, "token": None, "kl_before": None, "kl_after": None
    }  # fmt: skip


def test_quantiles_are_numpy_s_of_the_rows_that_were_left():
    rng = np.random.default_rng(2)
    rows = random_rows(rng, 40, diagnosed=40)
    for r in rows:
        for entry in r["scored"]:
            entry["teacher_nll"] = (8 * np.asarray(entry["teacher_nll"])).tolist()
    step = StepRows(step_table(*rows))
    gathered = Departures()
    gathered.add(step.scored, step.passed["y_o"])
    its = step.scored.kind("y_o_refine")
    places = departures(its)
    assert 5 < (places >= 0).sum() < 40
    relative = places[places >= 0] / its.lengths_E[places >= 0]
    assert gathered.found()["y_o_refine"]["all"]["relative"]["p25"] == pytest.approx(np.quantile(relative, 0.25))


def test_y_r_is_never_left_since_the_teacher_wrote_it():
    gathered = Departures()
    gathered.add(of(scored("y_r", "refine", True, kl=[1.0], teacher_nll=[9.0])), np.array([1.0]))
    assert gathered.found() is None
