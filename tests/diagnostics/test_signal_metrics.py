import numpy as np
import pytest
from made_steps import random_rows, response, row, scored, step_table

from trd_ray.diagnostics.position import first_third_share
from trd_ray.diagnostics.signal_metrics import METRICS, step_metrics
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.token_signal import SignalSums
from trd_ray.record.metrics import metric_names, require_metric


def test_a_step_s_metrics_are_the_figures_of_its_rows():
    table = step_table(*random_rows(np.random.default_rng(0), 12, diagnosed=5))
    found = step_metrics(table)
    its = StepRows(table).scored
    assert found["signal/first_third"] == first_third_share(its.kind("trained"))
    y_o, y_r = its.paired("vanilla")
    assert len(y_o) == len(y_r) == 5
    assert found["signal/y_o_vanilla/kl"] == SignalSums().add(y_o).figures()["mean"]
    assert found["signal/y_r_vanilla/onset"] == SignalSums().add(y_r).figures()["onset"]
    assert set(METRICS) - set(found) == {"support/unique_answers"}  # one rollout a problem


def test_all_have_names_that_a_checkpoint_may_be_the_best_by():
    assert set(METRICS) <= set(metric_names())
    require_metric("signal/first_third", metric_names())


def test_what_was_not_measured_is_absent():
    trained = [scored("y_r", "refine", True, kl=[1.0])]
    found = step_metrics(step_table(row(0, y_o=response([1]), y_r=response([2]), scored=trained)))
    assert not [name for name in found if "vanilla" in name or name.startswith("signal/y_")]
    assert {"signal/first_third", "support/kept_share", "support/leaks"} <= set(found)
    assert step_metrics(step_table(row(0, fault="dead", y_o=response([1])))) == {}
    assert step_metrics(step_table()) == {}
    assert step_metrics(step_table(row(0)).drop_columns(["scored"])) == {}


def test_every_metric_is_a_finite_number_whatever_the_rows_hold():
    odd = [scored("y_r", "refine", True, kl=[float("nan")]), scored("y_o", "refine", kl=[1.0], teacher_nll=[6e4])]
    rows = [row(0, y_o=response([1], logprobs=[-1.0]), y_r=response([]), scored=odd), row(1), row(2, y_r=response([3]))]
    found = step_metrics(step_table(*rows))
    assert found and all(isinstance(v, float | int) and np.isfinite(v) for v in found.values())
    assert found["support/y_o_nll"] == pytest.approx(1.0)
