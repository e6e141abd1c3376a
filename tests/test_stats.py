from itertools import combinations
from math import comb, nan

import numpy as np
import pytest
from scipy import stats as scipy_stats

from trd_ray.evaluate.stats import (
    avg_at_k,
    bootstrap,
    compare,
    from_json,
    paired_difference,
    pass_at_k,
    score,
    table,
    to_json,
)


def rows(passed: dict[str, list[bool]]) -> list[dict]:
    return [
        {
            "problem_id": problem,
            "y_o_passed": ok,
            "y_o_ids": [1] * (10 if ok else 30),
            "y_o_finish": "stop" if ok else "length",
            "y_o_extracted": "5" if ok else "",
        }
        for problem, samples in passed.items()
        for ok in samples
    ]


def made(name: str, passed: dict[str, list[bool]], step: int = 0):
    return score(rows(passed), name=name, step=step, version=step, resamples=500, seed=0)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 1), (5, 2), (6, 3), (8, 8)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass(n, k):
    for c in range(n + 1):
        samples = [i < c for i in range(n)]
        drawn = [any(subset) for subset in combinations(samples, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(drawn) / len(drawn), abs=1e-12)


def test_pass_at_k_keeps_its_digits_where_binomials_are_astronomic():
    n, c, k = 100_000, 3, 512
    exact = 1 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-12)


def test_pass_at_k_broadcasts_over_problems():
    np.testing.assert_allclose(pass_at_k(4, np.array([0, 1, 4]), 2), [0, 0.5, 1])


def test_pass_at_1_is_avg_at_k():
    passed_PS = np.random.default_rng(0).random((20, 16)) < 0.3
    assert pass_at_k(16, passed_PS.sum(1), 1).mean() == pytest.approx(avg_at_k(passed_PS))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


def test_the_interval_is_that_of_a_plain_bootstrap_loop():
    values = np.random.default_rng(1).random(40) ** 2
    rng = np.random.default_rng(2)
    means = [np.mean([values[i] for i in rng.integers(0, 40, 40)]) for _ in range(4000)]
    np.testing.assert_allclose(bootstrap(values, 4000, seed=3), np.percentile(means, [2.5, 97.5]), atol=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(rng.binomial(16, 0.4, 60) / 16, 500, seed=1)
        hits += low <= 0.4 <= high
    # 95% nominal; the percentile bootstrap is a little short at 60 problems, and 200 trials scatter by 1.5%.
    assert scipy_stats.binomtest(hits, 200, 0.93).pvalue > 1e-3


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(30) / 30
    assert bootstrap(values, 1000, seed=5) == bootstrap(values, 1000, seed=5)
    assert bootstrap(values, 1000, seed=5) != bootstrap(values, 1000, seed=6)


def test_equal_problems_have_an_interval_of_no_width_and_one_problem_has_none():
    assert bootstrap(np.full(10, 0.5), 200, seed=0) == (0.5, 0.5)
    assert bootstrap(np.array([0.5]), 200, seed=0) is None


def test_pairing_sees_a_gain_that_two_separate_intervals_hide():
    base = np.linspace(0, 0.9, 40)
    trained = base + 0.05 + 0.01 * np.sin(np.arange(40))
    gain = paired_difference(base, trained, 2000, seed=0)
    assert gain.value == pytest.approx(np.mean(trained - base))
    assert gain.clear_of_zero
    assert bootstrap(base, 2000, 0)[1] > bootstrap(trained, 2000, 0)[0]


def test_a_score_counts_what_the_rows_say():
    s = made("base", {"b": [True, False, False, False], "a": [True, True, True, True]})
    assert (s.samples, s.problems, list(s.per_problem)) == (4, 2, ["a", "b"])
    assert list(s.scores) == ["avg@4", "pass@1", "pass@2", "pass@4"]
    assert s.scores["avg@4"].value == pytest.approx(5 / 8)
    assert s.scores["pass@2"].value == pytest.approx((1 + 1 / 2) / 2)
    assert s.scores["pass@4"].value == 1
    assert (s.tokens_mean, s.truncated, s.answered) == ((5 * 10 + 3 * 30) / 8, 3 / 8, 5 / 8)


def test_pass_at_k_stops_at_the_largest_power_of_two():
    assert list(made("base", {"a": [True] * 6}).scores) == ["avg@6", "pass@1", "pass@2", "pass@4"]


def test_a_comparison_pairs_by_problem_whatever_the_order():
    base = made("base", {"a": [True, False], "b": [False, False], "c": [True, True]})
    trained = made("trained", {"c": [True, True], "b": [True, True], "a": [True, True]}, step=9)
    pair = compare(trained, base, resamples=500, seed=0).paired_with
    assert (pair.name, pair.differences["avg@2"].value) == ("base", pytest.approx(0.5))
    assert pair.differences["pass@2"].value == pytest.approx(1 / 3)


def test_other_problems_or_unequal_samples_are_refused():
    with pytest.raises(ValueError, match="same problems"):
        compare(made("trained", {"a": [True]}), made("base", {"b": [True]}), resamples=100, seed=0)
    with pytest.raises(ValueError, match="same number of samples"):
        made("base", {"a": [True], "b": [True, False]})
    with pytest.raises(ValueError, match="no rows"):
        made("base", {})


def test_a_score_comes_back_from_its_json():
    import json

    base = made("base", {"a": [True, False], "b": [False, False]})
    trained = compare(made("trained", {"a": [True, True], "b": [False, True]}, 3), base, resamples=200, seed=0)
    for s in (base, trained, made("one", {"a": [True]})):
        tree = json.loads(json.dumps(to_json(s), allow_nan=False))
        assert from_json(tree) == s


def test_the_table_shows_both_models_and_their_difference():
    base = made("base", {"a": [True, False], "b": [False, False]})
    trained = compare(made("trained", {"a": [True, True], "b": [True, True]}, 3), base, resamples=200, seed=0)
    lines = table([base, trained])
    assert lines[0] == ["", "base (step 0)", "trained (step 3)", "trained - base"]
    assert lines[1] == ["Avg@2", "25.0 [0.0, 50.0]", "100.0 [100.0, 100.0]", "+75.0 [+50.0, +100.0]"]
    assert {len(line) for line in lines} == {4}
    assert str(nan) not in str(lines)
