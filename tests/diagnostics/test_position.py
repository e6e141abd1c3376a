import numpy as np
import pytest
from made_steps import random_rows, row, scored, step_table

from trd_ray.diagnostics.position import Position, first_third_share
from trd_ray.diagnostics.step_rows import StepRows


def test_tenths_and_the_first_third_are_what_a_loop_over_tokens_gives():
    rng = np.random.default_rng(0)
    steps = [random_rows(rng, 8, diagnosed=3) for _ in range(2)]
    position = Position()
    sums = np.zeros((2, 10))
    early = early_tokens = 0.0
    for rows in steps:
        position.add(StepRows(step_table(*rows)).scored)
        for r in rows:
            kl = [float(np.float16(v)) for e in r["scored"] if e["trained"] for v in e["kl"]]
            for t, value in enumerate(kl):
                sums[:, int(10 * t / len(kl))] += value, 1
                early += value if t < len(kl) / 3 else 0
                early_tokens += t < len(kl) / 3
    found = position.found()["trained"]
    assert found["kl"] == pytest.approx((sums[0] / sums[1]).tolist(), rel=1e-6)
    assert found["tokens"] == sums[1].tolist()
    assert found["first_third"] == pytest.approx(early / sums[0].sum(), rel=1e-6)
    assert found["first_third_tokens"] == pytest.approx(early_tokens / sums[1].sum())


def test_signal_at_the_begin_is_in_the_first_tenth_and_the_first_third():
    kl = [1.0] + [0.0] * 29
    its = StepRows(step_table(row(0, scored=[scored("y_o", "vanilla", kl=kl)]))).scored
    position = Position()
    position.add(its)
    found = position.found()["y_o_vanilla"]
    assert found["kl"] == [pytest.approx(1 / 3), *[0.0] * 9] and found["first_third"] == first_third_share(its) == 1.0
    assert found["tokens"] == [3] * 10


def test_three_tokens_have_one_in_the_first_third_and_seven_tenths_have_none():
    its = StepRows(step_table(row(0, scored=[scored("y_r", "refine", True, kl=[3.0, 2.0, 1.0])]))).scored
    position = Position()
    position.add(its)
    found = position.found()["trained"]
    assert first_third_share(its) == 0.5
    assert found["kl"] == [3.0, None, None, 2.0, None, None, 1.0, None, None, None]


def test_where_there_is_no_signal_there_is_no_share():
    its = StepRows(step_table(row(0, scored=[scored("y_r", "refine", True, kl=[0.0, 0.0])]))).scored
    assert first_third_share(its) is None
    assert Position().found() is None
