"""The design of a comparison: seeds per method, bases, families that share a tuning, and grids that widen."""

import pytest

from trd_ray.compare import grid, tuning
from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan, pending
from trd_ray.errors import UserError

BASES = (
    "bases={zero: {}, one: {set: {student: {path: 'miniature:student_1'}, data: {path: 'miniature:train_1'}, "
    "evaluation: {path: 'miniature:test_1'}}, modes: {opd: {teacher: {path: 'miniature:teacher_1'}}}}}"
)


def comparison(*overrides: str):
    return grid.load("miniature", list(overrides))


# Learning rates


def widened(peak: float, widenings: int, first=(1e-4, 1e-3, 1e-2)) -> list[float]:
    """The rates that are tried where the score is highest next to `peak`, one after the other."""
    scored: dict[float, float] = {}

    def score(rate: float) -> float | None:
        return scored.get(rate)

    while True:
        tried = tuning.rates(first, score, widenings)
        left = [rate for rate in tried if rate not in scored]
        if not left:
            return tried
        scored[left[0]] = -abs(left[0] - peak) / max(left[0], peak)


def test_a_grid_widens_at_its_ratio_while_the_best_rate_is_at_its_end():
    assert widened(1e-3, 3) == [1e-4, 1e-3, 1e-2], "neighbours on both sides"
    assert widened(1e-1, 3) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "until the best has a neighbour above"
    assert widened(1e-6, 3) == [1e-4, 1e-3, 1e-2, 1e-5, 1e-6, 1e-7], "each end has its own ratio"
    assert widened(9.0, 1) == [1e-4, 1e-3, 1e-2, 1e-1], "no more often than asked"
    assert widened(9.0, 0) == [1e-4, 1e-3, 1e-2]
    assert widened(9.0, 3, first=(1e-3,)) == [1e-3], "one rate has no ratio"


def test_of_equal_rates_the_lowest_is_chosen_and_none_before_all_are_scored():
    scores = {1.0: 0.5, 0.1: 0.5, 0.01: 0.4}
    assert tuning.chosen([1.0, 0.1, 0.01], scores.get) == 0.1
    assert tuning.chosen([1.0, 0.1, 0.01, 10.0], scores.get) is None
    assert tuning.at_the_edge([1.0, 0.1], 0.1) and not tuning.at_the_edge([1.0, 0.1, 0.01], 0.1)


# Cells


def test_seeds_may_be_a_number_and_a_method_may_have_its_own():
    c = comparison("seeds=4", "methods.reverse_kl.seeds=2", "methods.trd.seeds=[7, 1]")
    assert c.seeds == [0, 1, 2, 3] and c.seeds_of("reverse_kl") == [0, 1] and c.seeds_of("trd") == [7, 1]
    finals = [cell for cell in grid.cells(c, "opd", list(c.methods)) if cell.kind == "final"]
    assert [cell.seed for cell in finals if cell.method == "trd"] == [1, 7]
    assert [cell.seed for cell in finals if cell.method == "reverse_kl"] == [0, 1]
    assert c.seeds_of_base("opd") == [0, 1, 2, 3, 7], "every run has a base with its seed"
    assert [cell.seed for cell in finals] == sorted(cell.seed for cell in finals), "methods can be compared early"


def test_a_method_may_run_in_one_mode_alone():
    c = comparison("methods.reverse_kl.only_in=[opsd]")
    assert "reverse_kl" not in c.methods_of("opd") and "reverse_kl" in c.methods_of("opsd")
    left = comparison("methods.reverse_kl.only_in=[opsd]", "modes.opsd=null")
    assert "reverse_kl" not in left.methods, "its only mode is left out"


def test_a_base_changes_the_recipe_and_the_names_of_its_cells(tmp_path):
    c = comparison(BASES, f"directory={tmp_path}", "tuning.set.steps=3")
    one, zero = (grid.recipe(c, Cell("final", "opd", "trd", 0, base=base)) for base in ("one", "zero"))
    assert (one.student.path, one.data.path, one.evaluation.path) == (
        "miniature:student_1", "miniature:train_1", "miniature:test_1",
    )  # fmt: skip
    assert one.teacher.path == "miniature:teacher_1" and zero.teacher.path == "miniature:teacher"
    assert one.directory == tmp_path / "opd/trd/one-seed-0" and zero.directory == tmp_path / "opd/trd/zero-seed-0"
    tuned = {cell.base for base in c.base_names for cell in grid.cells(c, "opd", ["trd"], base) if cell.lr is not None}
    assert tuned == {"zero"}, "rates are tuned on the first base alone"
    assert Cell("final", "opd", "trd", 0).name == "opd/trd/seed-0", "without bases, cells are named as they were"


def test_runs_on_different_bases_get_engines_of_their_own():
    from trd_ray.compare.engine_groups import engine_groups

    groups = engine_groups(comparison(BASES))
    assert [(g.mode, g.base) for g in groups] == [("opd", "zero"), ("opd", "one"), ("opsd", "zero"), ("opsd", "one")]
    assert str(groups[1]) == "opd on one"


# Families


def test_a_family_is_tuned_once_by_its_first_method_in_the_mode():
    c = comparison("families={kl: [forward_kl, trd]}", "methods.forward_kl.only_in=[opd]")
    assert c.tuned_for("opd", "trd") == "forward_kl" and c.tuned_for("opsd", "trd") == "trd"
    tuned = {m: [cell.method for cell in grid.cells(c, m, c.methods_of(m)) if cell.kind == "tuning"] for m in c.modes}
    assert "trd" not in tuned["opd"] and tuned["opd"].count("forward_kl") == 3 and tuned["opsd"].count("trd") == 3


def test_a_cell_whose_rate_other_engines_tune_waits_for_them(tmp_path):
    cut = ["modes.opd=null", "methods.clipped_forward_kl=null", "methods.reverse_kl=null", "seeds=[0]"]
    cut += ["methods.reverse_kl_top_k=null", "families={kl: [trd, forward_kl]}", f"directory={tmp_path}"]
    plan = ComparisonPlan(comparison(*cut, "methods.trd={set: {refiner: {max_model_len: 400}}}"))
    first, second = plan.groups
    assert (first.methods, second.methods) == (["forward_kl"], ["trd"])
    assert [cell.name for cell in pending(plan, first, {}, patient=True)] == ["opsd/base/seed-0"]
    names = [cell.name for cell in pending(plan, second, {}, patient=True)]
    assert names[:3] == [f"opsd/tuning/trd/lr-{lr}" for lr in ("2e-05", "0.0002", "0.002")]
    assert names[3:] == ["opsd/trd/seed-0"], "its own engines tune it, so it says why it cannot run"
    done = {"opsd/base/seed-0": "x"}
    assert [cell.name for cell in pending(plan, first, done)] == ["opsd/forward_kl/seed-0"], "and no failed one again"


# What cannot be


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeds=0", "seeds is empty"),
        ("methods.trd.seeds=[1, 1]", "seed twice"),
        ("methods.trd.only_in=[opds]", "did you mean opd"),
        ("methods.trd.only_in=[]", "is empty"),
        ("budget=forwardkl", "budget names no method .did you mean forward_kl"),
        ("families={a: [tdr]}", "which is no method .did you mean trd"),
        ("families={a: [trd], b: [trd]}", "both hold 'trd': take one out"),
        ("bases={a: {modes: {opsdd: {}}}}", "bases.a.modes.opsdd names no mode"),
        ("bases={cells: {}}", "cannot be the name"),
        ("bases={a: {set: {seed: 1}}}", "comparison's seeds"),
        ("bases={a: {sett: {}}}", "did you mean set"),
        ("tuning.widenings=-1", "widenings"),
        ("tuning.learning_rates=[0.0]", "learning_rates"),
    ],
)
def test_a_faulty_design_is_refused_with_its_remedy(override, sentence):
    with pytest.raises(UserError, match=sentence):
        comparison(override)


def test_families_without_a_tuning_and_modes_without_a_method_are_refused():
    with pytest.raises(UserError, match="nothing is tuned: set tuning, or leave families out"):
        comparison("families={a: [trd]}", "tuning=null")
    only = [f"methods.{name}.only_in=[opd]" for name in grid.load("miniature").methods]
    with pytest.raises(UserError, match="modes.opsd has no method"):
        comparison(*only)


def test_a_method_that_never_syncs_is_evaluated_at_its_end_alone():
    c = comparison("set.evaluation.every_steps=3", "methods.trd={set: {stream: {max_staleness: never}}}")
    assert grid.recipe(c, Cell("final", "opd", "forward_kl", 0)).evaluation.every_steps == 3
    assert grid.recipe(c, Cell("final", "opd", "trd", 0)).evaluation.every_steps is None
    assert grid.recipe(c, Cell("tuning", "opd", "forward_kl", 0, 0.1)).evaluation.every_steps is None
