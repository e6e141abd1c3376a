"""Intervals over seeds and problems: against loops, and against simulations of which the truth is known."""

import numpy as np
import pytest
from scipy import stats

from trd_ray.score.stats import DIFFERENCE, SHARE
from trd_ray.score.two_level import SeedBlock, alone, degrees_of_freedom, simultaneous


def block(values_SP, base="a", seeds=None) -> SeedBlock:
    values_SP = np.asarray(values_SP, dtype=float)
    return SeedBlock(base, tuple(range(len(values_SP)) if seeds is None else seeds), values_SP)


def drawn(rng, seeds: int, problems: int, of_seeds: float, of_problems: float, rest: float, truth: float = 0.0):
    """Values with a part of the seed's, a part of the problem's and a rest."""
    return (
        truth
        + rng.normal(0, of_seeds, (seeds, 1))
        + rng.normal(0, of_problems, (1, problems))
        + rng.normal(0, rest, (seeds, problems))
    )


def test_the_interval_is_that_of_loops_that_draw_seeds_and_problems():
    values_SP = drawn(np.random.default_rng(0), 5, 30, 0.05, 0.1, 0.1, truth=0.2)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        seeds = rng.integers(5, size=4)
        problems = rng.integers(30, size=29)
        means.append(np.mean([[values_SP[s, p] for p in problems] for s in seeds]))
    error = np.std(means)
    between_seeds = np.var(values_SP.mean(axis=1), ddof=1) / 5
    between_problems = np.var(values_SP.mean(axis=0), ddof=1) / 30
    freedom = (between_seeds + between_problems) ** 2 / (between_seeds**2 / 4 + between_problems**2 / 29)
    assert degrees_of_freedom([block(values_SP)]) == pytest.approx(freedom)
    found = alone([block(values_SP)], 4000, 0, DIFFERENCE)
    assert found.value == pytest.approx(values_SP.mean()) and found.seeds_held
    half = stats.t.ppf(0.975, freedom) * error
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.low == pytest.approx(half, rel=0.05)
    assert (found.low_alone, found.high_alone) == (found.low, found.high), "one comparison needs no correction"


def test_the_mean_of_seeds_alone_has_the_interval_of_scipy():
    """Problems that do not differ leave the t interval of the seeds' means."""
    means_S = np.array([0.2, 0.5, 0.4, 0.3])
    found = alone([block(np.repeat(means_S[:, None], 50, axis=1))], 20000, 0, DIFFERENCE)
    low, high = stats.ttest_1samp(means_S, 0).confidence_interval(0.95)
    # The problems' degrees of freedom count, but they have no variance.
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize(("of_seeds", "of_problems"), [(0.05, 0.1), (0.02, 0.2), (0.0, 0.1)])
def test_an_interval_holds_the_truth_as_often_as_it_says(seeds, of_seeds, of_problems):
    rng = np.random.default_rng(seeds)
    tries = 400
    held = 0
    for i in range(tries):
        found = alone([block(drawn(rng, seeds, 60, of_seeds, of_problems, 0.15, truth=0.1))], 400, i, DIFFERENCE)
        held += found.low <= 0.1 <= found.high
    assert held / tries >= 0.925, held / tries
    assert held / tries <= 0.995, held / tries


def test_an_interval_over_problems_alone_holds_the_truth_far_too_seldom_where_seeds_differ():
    rng = np.random.default_rng(0)
    one_level = two_level = 0
    for i in range(400):
        values_SP = drawn(rng, 3, 60, 0.05, 0.05, 0.1, truth=0.1)
        whole = alone([block(values_SP)], 400, i, DIFFERENCE)
        mean_P = block(values_SP.mean(axis=0, keepdims=True))
        flat = alone([mean_P], 400, i, DIFFERENCE)
        two_level += whole.low <= 0.1 <= whole.high
        one_level += flat.low <= 0.1 <= flat.high
        assert not flat.seeds_held
    assert one_level < 240 and two_level >= 366


def test_corrected_intervals_hold_all_truths_together():
    rng = np.random.default_rng(0)
    tries, comparisons = 200, 12
    all_held = each_alone = 0
    for i in range(tries):
        base_SP = drawn(rng, 8, 60, 0.03, 0.1, 0.1)  # the side that all are compared with
        found = simultaneous(
            {f"m{m}": [block(drawn(rng, 8, 60, 0.03, 0.1, 0.1, truth=0.1) - base_SP)] for m in range(comparisons)},
            400, i,
        )  # fmt: skip
        all_held += all(f.low <= 0.1 <= f.high for f in found.values())
        each_alone += all(f.low_alone <= 0.1 <= f.high_alone for f in found.values())
    assert all_held / tries >= 0.92, all_held / tries
    assert each_alone / tries < 0.85, "without the correction one of twelve is often missed"


def test_methods_that_move_alike_pay_less_for_their_number_than_bonferroni_asks():
    rng = np.random.default_rng(0)
    shared_SP = drawn(rng, 8, 60, 0.03, 0.1, 0.1)
    alike = {f"m{m}": [block(shared_SP + rng.normal(0, 0.01, shared_SP.shape))] for m in range(10)}
    found = simultaneous(alike, 4000, 0)["m0"]
    wider = (found.high - found.low) / (found.high_alone - found.low_alone)
    assert 1.0 <= wider < 1.1
    freedom = degrees_of_freedom(alike["m0"])
    assert stats.t.isf(0.0025, freedom) / stats.t.isf(0.025, freedom) > 1.4  # what Bonferroni asks


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_smallest_difference_that_a_design_finds_is_found_in_four_of_five_cases(seeds):
    rng = np.random.default_rng(0)
    shape = dict(seeds=seeds, problems=60, of_seeds=0.05, of_problems=0.1, rest=0.1)
    found = [alone([block(drawn(rng, **shape))], 400, 0, DIFFERENCE).detectable for _ in range(200)]
    truth = np.sqrt(np.mean(np.square(found)))
    tries = [alone([block(drawn(rng, **shape, truth=truth))], 400, i, DIFFERENCE) for i in range(400)]
    assert 0.74 <= np.mean([found.low > 0 for found in tries]) <= 0.86


def test_bases_weigh_alike_and_are_not_resampled():
    rng = np.random.default_rng(0)
    one, two = drawn(rng, 3, 40, 0, 0, 0.05, 0.1), drawn(rng, 8, 20, 0, 0, 0.05, 0.5)
    found = alone([block(one, "a"), block(two, "b")], 2000, 0, DIFFERENCE)
    assert found.value == pytest.approx((one.mean() + two.mean()) / 2)
    assert found.high - found.low < 0.1, "0.1 and 0.5 are two bases, not a spread"


def test_seeds_are_drawn_alike_for_every_method_that_has_them():
    """A method and its double differ by nothing under every draw."""
    rng = np.random.default_rng(0)
    values_SP = drawn(rng, 5, 30, 0.2, 0.1, 0.1)
    found = simultaneous({"a": [block(values_SP)], "b": [block(values_SP.copy())]}, 500, 0)
    assert found["a"] == found["b"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_every_answer_is_the_same_the_interval_is_not_certain(value):
    found = alone([block(np.full((3, 50), value))], 2000, 0, SHARE)
    assert found.value == value and 0.01 < found.high - found.low < 0.12
    one = alone([block([[value]])], 500, 0, SHARE)
    assert (one.low, one.high, one.detectable) == (None, None, None)
