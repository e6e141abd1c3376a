"""What an estimate warns of, in a sentence each."""

from dataclasses import replace

from priced import case
from trd_ray.economics import told
from trd_ray.economics.calibration import Measured
from trd_ray.economics.case import Case
from trd_ray.economics.run_cost import run_cost
from trd_ray.economics.workload import RunFacts


def lengths(of: Case) -> RunFacts:
    return RunFacts(tuple(of.lengths.rows(512, 0)), "lengths are those of a run")


def estimated(of: Case, measured: Measured | None) -> told.CostEstimate:
    return told.CostEstimate(run_cost(replace(of, measured=measured)), [], None, 512, None, measured)


def test_rates_that_are_not_taken_are_said_and_why():
    of = case("paper_opd_1p7b")
    e = estimated(of, Measured("mine", lengths(of), differs="it ran on A100-80G, this is for H100"))
    [line] = [line for line in told.render(e).splitlines() if "warning" in line]
    assert "mine gives lengths alone and no rates, since it ran on A100-80G, this is for H100" in line
    assert "name with --like a run of the same models" in line and told.TRUST in told.render(e)
    assert told.as_tree(e)["warnings"] == [line.removeprefix("  warning: ")]


def test_verifiers_that_are_slower_than_the_engines_are_warned_of():
    of = case("paper_opd_1p7b", "verify.max_tasks=8")
    made_s = run_cost(replace(of, measured=Measured("mine", lengths(of)))).step.step_s
    quick, slow = (Measured("mine", lengths(of), verdicts_s=part * made_s * 8 / 512) for part in (0.5, 2.0))
    assert "warning" not in told.render(estimated(of, quick)) and told.as_tree(estimated(of, quick))["warnings"] == []
    text = told.render(estimated(of, slow))
    assert f"verdicts as in mine take {2 * made_s:,.0f} s a step" in text and "raise verify.max_tasks" in text
    more = case("paper_opd_1p7b", "verify.max_tasks=32")
    assert "warning" not in told.render(estimated(more, slow)), "four times the tasks"


def test_nothing_is_warned_of_without_a_run():
    e = estimated(case("paper_opd_1p7b"), None)
    assert "warning" not in told.render(e) and told.as_tree(e)["warnings"] == []
