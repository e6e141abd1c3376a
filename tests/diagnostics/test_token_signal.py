"""Figures of the signal against naive loops in float64, NumPy's and SciPy's quantiles."""

import math

import numpy as np
import pytest
from made_steps import random_rows, row, scored, step_table
from scipy.stats.mstats import mquantiles

from trd_ray.diagnostics.scored import ScoredTokens
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.tally import Tally
from trd_ray.diagnostics.token_signal import FIGURES, Signal, SignalSums


def of(*rows: dict) -> ScoredTokens:
    return StepRows(step_table(*rows)).scored


def naive(rows: list[dict], chosen) -> dict:
    """The definitions, token by token."""
    entries = [e for r in rows for e in r["scored"] if chosen(e) and len(e["kl"])]
    kl = [float(np.float16(v)) for e in entries for v in e["kl"]]
    mean = {
        name: math.fsum(float(np.float16(v)) for e in entries for v in e[name]) / len(kl)
        for name in ("student_nll", "teacher_nll", "onset")
    }
    student, teacher = math.exp(mean["student_nll"]), math.exp(mean["teacher_nll"])
    # alphap = betap = 1 is the definition by which NumPy interpolates
    p50, p95, p99 = mquantiles(kl, [0.5, 0.95, 0.99], alphap=1, betap=1)
    return {
        "rows": len(entries),
        "tokens": len(kl),
        "mean": math.fsum(kl) / len(kl),
        "row_mean": math.fsum(math.fsum(map(float, np.float16(e["kl"]))) / len(e["kl"]) for e in entries)
        / len(entries),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": max(kl),
        "ppl_student": student,
        "ppl_teacher": teacher,
        "ppl_gap": student - teacher,
        "onset": 1000 * mean["onset"],
        "not_finite": 0,
    }


CHOSEN = {
    "trained": lambda e: e["trained"],
    "y_o_refine": lambda e: (e["trajectory"], e["view"]) == ("y_o", "refine"),
    "y_o_vanilla": lambda e: (e["trajectory"], e["view"]) == ("y_o", "vanilla"),
    "y_r_refine": lambda e: (e["trajectory"], e["view"]) == ("y_r", "refine"),
    "y_r_vanilla": lambda e: (e["trajectory"], e["view"]) == ("y_r", "vanilla"),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_every_figure_of_a_step_and_of_a_run_is_what_a_loop_over_tokens_gives(kind):
    rng = np.random.default_rng(0)
    steps = {step: random_rows(rng, 9, step=step, diagnosed=4) for step in (1, 2, 3)}
    signal = Signal()
    for step, rows in steps.items():
        signal.add(step, of(*rows))
    found = signal.found()
    assert found and found["steps"] == [1, 2, 3]
    for place, rows in enumerate(steps.values()):
        each = {name: found["kinds"][kind][name][place] for name in FIGURES}
        assert each == pytest.approx(naive(rows, CHOSEN[kind]), rel=1e-6)
    every = [one for rows in steps.values() for one in rows]
    assert found["all"][kind] == pytest.approx(naive(every, CHOSEN[kind]), rel=1e-6)


def test_pairs_are_of_the_rows_that_have_both():
    rows = random_rows(np.random.default_rng(1), 8, diagnosed=3)
    signal = Signal()
    signal.add(1, of(*rows))
    paired = signal.found()["paired"]
    assert paired["refine"]["rows"] == paired["vanilla"]["rows"] == 3
    assert paired["refine"]["y_r"] == pytest.approx(naive(rows[:3], CHOSEN["y_r_refine"]), rel=1e-6)
    assert paired["vanilla"]["y_o"] == pytest.approx(naive(rows[:3], CHOSEN["y_o_vanilla"]), rel=1e-6)


def test_a_perplexity_gap_is_the_student_s_minus_the_teacher_s():
    nll = {"student_nll": [math.log(4)] * 2, "teacher_nll": [math.log(2)] * 2}
    figures = SignalSums().add(of(row(0, scored=[scored("y_r", "refine", True, kl=[0.5, 0.5], **nll)]))).figures()
    assert figures["ppl_student"] == pytest.approx(4, rel=1e-3) and figures["ppl_gap"] == pytest.approx(2, rel=2e-3)


def test_tokens_at_which_something_is_not_finite_are_counted_and_in_no_figure():
    broken = scored("y_r", "refine", True, kl=[1.0, math.inf, 3.0], teacher_nll=[1.0, 1.0, math.nan])
    whole = scored("y_r", "refine", True, kl=[5.0])
    figures = SignalSums().add(of(row(0, scored=[broken]), row(1, scored=[whole]))).figures()
    assert (figures["mean"], figures["row_mean"], figures["max"], figures["not_finite"]) == (3.0, 3.0, 5.0, 2)
    nothing = SignalSums().add(of(row(0, scored=[scored("y_r", "refine", True, kl=[math.nan])]))).figures()
    assert nothing["rows"] == 0 and nothing["mean"] is None and nothing["not_finite"] == 1


def test_a_teacher_that_finds_nothing_likely_has_no_perplexity_rather_than_an_error():
    figures = (
        SignalSums().add(of(row(0, scored=[scored("y_o", "refine", True, kl=[1.0], teacher_nll=[6e4])]))).figures()
    )
    assert figures["ppl_teacher"] is None and figures["ppl_gap"] is None and figures["ppl_student"] == 1


def test_what_float16_could_not_hold_is_as_what_is_not_finite():
    figures = SignalSums().add(of(row(0, scored=[scored("y_o", "refine", True, kl=[1.0, 65504.0])]))).figures()
    assert figures["mean"] == figures["max"] == 1.0 and figures["not_finite"] == 1


def test_of_a_trajectory_that_was_trained_on_and_looked_at_the_pair_takes_the_look_and_the_kind_what_was_trained():
    """The look has the weights before the step, as y_o's has; an earlier update of the step is in what was trained."""
    found = of(
        row(
            0,
            scored=[
                scored("y_r", "refine", True, kl=[9.0]),
                scored("y_o", "refine", kl=[1.0]),
                scored("y_r", "refine", kl=[2.0]),
            ],
        ),
        row(1, scored=[scored("y_r", "refine", True, kl=[5.0]), scored("y_o", "refine", kl=[7.0])]),
    )
    assert found.kind("y_r_refine").tokens["kl"].tolist() == found.kind("trained").tokens["kl"].tolist() == [9.0, 5.0]
    y_o, y_r = found.paired("refine")
    assert y_o.tokens["kl"].tolist() == [1.0, 7.0] and y_r.tokens["kl"].tolist() == [2.0, 5.0]


def test_what_lacks_tokens_or_a_list_is_left_out_and_of_two_the_first_counts():
    found = of(
        row(0, scored=[scored("y_r", "refine", True, kl=[1.0, 2.0]), scored("y_r", "refine", True, kl=[9.0, 9.0])]),
        row(1, scored=[scored("y_o", "vanilla"), scored("y_r", "vanilla", kl=[1.0], onset=None)]),
        row(2, scored=[scored("y_o", "vanilla", kl=[1.0], onset=[0.0, 0.0])]),
        row(3, scored=None),
        row(4, scored=[]),
        row(5, scored=[scored("y_o", "vanilla", kl=[4.0])]),
    )
    assert found.row_E.tolist() == [0, 5] and found.kind_E.tolist() == ["y_r_refine", "y_o_vanilla"]
    assert found.tokens["kl"].tolist() == [1.0, 2.0, 4.0] and found.place_N.tolist() == [0, 1, 0]


def test_rows_that_nobody_could_judge_and_rows_without_the_column_have_no_signal():
    entry = scored("y_r", "refine", True, kl=[1.0])
    assert of(row(0, scored=[entry], fault="not judged"), row(1, scored=[entry])).row_E.tolist() == [1]
    assert len(StepRows(step_table(row(0)).drop_columns(["scored"])).scored) == 0
    assert len(of(row(0))) == len(StepRows(step_table()).scored) == 0
    signal = Signal()
    signal.add(1, of(row(0)))
    assert signal.found() is None


def test_a_step_without_a_kind_has_none_in_its_place():
    signal = Signal()
    signal.add(1, of(row(0, scored=[scored("y_r", "refine", True, kl=[1.0])])))
    signal.add(2, of(row(1)))
    assert signal.found()["kinds"]["trained"]["mean"] == [1.0, None]


@pytest.mark.parametrize("size", [1, 2, 3, 100, 5001])
def test_quantiles_of_a_tally_are_those_of_all_values_together(size):
    rng = np.random.default_rng(size)
    values = np.concatenate([rng.normal(0, 1, size), [0.0, -0.0, 65504.0], rng.exponential(1e-6, size)]).astype(
        np.float16
    )
    one, other = Tally(), Tally()
    one.add(values[: size // 2])
    other.add(values[size // 2 :])
    one.merge(other)
    shares = [0.0, 0.1, 0.5, 0.95, 0.99, 1.0]
    assert one.quantiles(shares) == pytest.approx(np.quantile(values.astype(np.float64), shares).tolist(), rel=1e-12)
    assert Tally().quantiles([0.5]) == [None]
