"""The control plane's shares by hand, and what is named first."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from priced import case
from trd_ray.economics import constants as c
from trd_ray.economics.at_scale import breaks_first, scaled
from trd_ray.economics.run_cost import run_cost
from trd_ray.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import scale  # noqa: E402


@pytest.fixture(scope="module")
def weak():
    return scale.table("paper_opd_1p7b", [])


def test_from_8_to_1024_gpus_every_size_has_a_line(weak):
    assert [one.gpus for one in weak] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [one.rollouts for one in weak] == [64 * one.gpus for one in weak]


def test_the_stage_s_share_is_its_rows_a_second_times_what_a_row_costs(weak):
    for one in weak:
        rate = one.rollouts / one.step_s
        assert one.full["stage"] == pytest.approx(rate * 13.2e-3)
        assert one.full["stage"] <= 1 + 1e-9


def test_a_step_is_never_shorter_than_the_fullest_process_lets_rows_through(weak):
    last = weak[-1]
    assert last.binds == "stage" and last.step_s == pytest.approx(65_536 * 13.2e-3, rel=0.01)
    assert last.efficiency < 0.5 < weak[3].efficiency
    assert breaks_first(weak) == "What breaks first is the stage, at 512 GPUs."


def test_the_same_rollouts_on_more_gpus_are_bound_by_the_longest_of_them():
    lines = scale.table("paper_opsd_8b", ["sync.in_flight=drain"], strong=True)
    assert all(one.rollouts == 512 for one in lines)
    assert lines[-1].efficiency < 0.1 and lines[-1].step_s > 16_384 * 7e-3, "a rollout of 16,384 tokens alone"
    assert "raise rollouts_per_step" in breaks_first(lines)


def test_efficiency_is_rollouts_a_second_and_gpu():
    cost = run_cost(case("paper_opd_1p7b"), draws=1)
    slower = replace(cost, step=replace(cost.step, step_s=2 * cost.step.step_s))
    lines = scaled(lambda times, _: cost if times == 1 else slower, 512, 8)
    assert [round(one.efficiency, 2) for one in lines[:2]] == [1.0, 0.5]
    assert lines[0].full["driver"] == pytest.approx(512 / cost.step.step_s * c.CPU_MS_A_ROW["driver"] / 1000)


def test_what_cannot_be_scaled_is_one_sentence(capsys):
    assert scale.main(["paper_opsd_8b", "--kind", "L4"]) == 2
    assert "fit" in capsys.readouterr().err
    with pytest.raises(UserError):
        scale.table("no_such_recipe", [])


def test_the_program_prints_the_table_and_what_breaks(capsys):
    assert scale.main(["paper_opd_1p7b"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n| ") == 9 and "What breaks first is the stage" in said
