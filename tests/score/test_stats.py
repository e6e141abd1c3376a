from itertools import combinations
from math import comb, nan

import numpy as np
import pytest
from scipy import stats as scipy_stats

from trd_ray.score.buckets import bucket_of, buckets
from trd_ray.score.buckets import table as bucket_table
from trd_ray.score.stats import (
    Answer,
    bootstrap,
    bootstraps,
    compare,
    estimate,
    from_json,
    jeffreys,
    mean_of_means,
    paired_difference,
    pass_at_k,
    percent,
    score,
    table,
    to_json,
    wilson,
)


def rows(passed: dict[str, list[bool]]) -> list[dict]:
    return [
        {
            "problem_id": problem,
            "y_o": {
                "passed": ok,
                "ids": [1] * (10 if ok else 30),
                "finish": "stop" if ok else "length",
                "extracted": "5" if ok else "",
            },
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


def test_pass_at_k_is_that_of_evalplus():
    from evalplus.eval import estimate_pass_at_k

    n = np.full(17, 16)
    for k in range(1, 17):
        np.testing.assert_allclose(pass_at_k(n, np.arange(17), k), estimate_pass_at_k(n, np.arange(17), k), atol=1e-12)


def test_every_pass_at_k_of_a_score_is_an_enumeration_of_all_subsets():
    passed_PS = np.random.default_rng(3).random((7, 6)) < np.linspace(0, 1, 7)[:, None]
    s = made("base", {f"p{i}": list(map(bool, samples)) for i, samples in enumerate(passed_PS)})
    assert list(s.scores) == ["avg@6", *(f"pass@{k}" for k in range(1, 7))]
    for k in range(1, 7):
        drawn = [np.mean([any(subset) for subset in combinations(samples, k)]) for samples in passed_PS]
        assert s.scores[f"pass@{k}"].value == pytest.approx(np.mean(drawn), abs=1e-12)


def test_pass_at_k_keeps_its_digits_where_binomials_are_astronomic():
    n, c, k = 100_000, 3, 512
    exact = 1 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-12)


def test_pass_at_k_broadcasts_over_problems():
    np.testing.assert_allclose(pass_at_k(4, np.array([0, 1, 4]), 2), [0, 0.5, 1])


def test_pass_at_1_is_avg_at_k():
    passed_PS = np.random.default_rng(0).random((20, 16)) < 0.3
    assert pass_at_k(16, passed_PS.sum(1), 1).mean() == pytest.approx(passed_PS.mean())


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


def test_measures_that_are_resampled_together_have_the_intervals_that_they_have_alone():
    values_MP = np.random.default_rng(4).random((3, 25))
    alone = [bootstrap(values_P, 800, seed=2) for values_P in values_MP]
    np.testing.assert_allclose(bootstraps(values_MP, 800, seed=2), alone, rtol=1e-12)


def test_the_interval_of_a_mean_over_benchmarks_is_scipys_of_independent_samples():
    rng = np.random.default_rng(5)
    groups = [rng.random(30), rng.random(100) ** 2, rng.random(12)]
    found = mean_of_means(groups, 8000, seed=0)
    theirs = scipy_stats.bootstrap(
        groups, lambda *g, axis: np.mean([x.mean(axis=axis) for x in g], axis=0), n_resamples=8000,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(np.mean([g.mean() for g in groups]))
    np.testing.assert_allclose((found.low, found.high), theirs, atol=0.004)
    assert mean_of_means([np.array([0.5]), groups[0]], 100, seed=0).low is None


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # The worked examples of Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_of_problems_has_the_published_wilson_interval(count, of, low, high):
    found = wilson(count, of)
    assert (found.value, found.low, found.high) == (
        count / of, pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5)
    )  # fmt: skip


def test_rates_over_samples_resample_problems_since_the_samples_of_one_are_alike():
    """40 problems, half of them always cut: 640 independent samples would give an interval 4 times as narrow."""
    answers = [Answer(f"p{i:02}", False, 10, i % 2 == 0, True) for i in range(40) for _ in range(16)]
    s = score(answers, name="base", step=0, version=0, resamples=4000, seed=0)
    assert s.truncated.value == 0.5 and s.answered.value == 1
    as_if_independent = wilson(320, 640)
    width, narrow = (e.high - e.low for e in (s.truncated, as_if_independent))
    assert width == pytest.approx(4 * narrow, rel=0.1)


def test_equal_problems_have_an_interval_of_no_width_and_one_problem_has_none():
    assert bootstrap(np.full(10, 0.5), 200, seed=0) == (0.5, 0.5)
    assert bootstrap(np.array([0.5]), 200, seed=0) is None


@pytest.mark.parametrize("problems", [2, 4, 8])
@pytest.mark.parametrize("solved", [False, True])
def test_a_few_problems_that_all_end_alike_leave_no_measure_certain(problems, solved):
    """Neither a share of 0 or 1 (passed, cut, answered) nor a difference that is the same for every problem."""
    same = {f"p{i}": [solved] * 4 for i in range(problems)}
    base = made("base", same)
    for e in (*base.scores.values(), base.truncated, base.answered):
        assert e.low <= e.value <= e.high and e.high - e.low > 0.2
    gained = made("trained", {f"p{i}": [True] * 4 for i in range(problems)}, step=9)
    for e in compare(gained, base, resamples=2000, seed=0).paired_with.differences.values():
        assert e.low <= e.value <= e.high and e.high - e.low > 0.2
    halved = paired_difference(np.zeros(problems), np.full(problems, 0.5), 2000, seed=0)
    assert halved.low < 0.5 < halved.high
    gain = mean_of_means([np.full(problems, float(solved)), np.full(3, float(solved))], 2000, seed=0)
    assert gain.low <= gain.value <= gain.high and gain.high - gain.low > 0.1


@pytest.mark.parametrize(("count", "of"), [(0, 4), (1, 4), (8, 8), (3, 30), (2, 100), (5, 9)])
def test_shares_of_few_passes_have_the_jeffreys_interval(count, of):
    values_P = np.array([1.0] * count + [0.0] * (of - count))
    exact = scipy_stats.beta(count + 0.5, of - count + 0.5).ppf([0.025, 0.975])
    exact = min(exact[0], count / of), max(exact[1], count / of)
    np.testing.assert_allclose(jeffreys(values_P, (0, 1), 40_000, seed=0), exact, atol=0.004)
    found = estimate(values_P, 40_000, seed=0)
    np.testing.assert_allclose((found.low, found.high), exact, atol=0.004)


@pytest.mark.parametrize("problems", [4, 8, 30, 100])
def test_intervals_of_shares_hold_the_truth_about_as_often_as_they_say_for_few_problems_and_rare_passes_too(problems):
    """Exact: every number of solved problems with its probability."""
    counts = np.arange(problems + 1)
    found = [estimate(np.repeat([1.0, 0.0], [c, problems - c]), 4000, seed=1) for c in counts]
    rates = np.array([0.005, 0.02, 0.05, *np.linspace(0.1, 0.9, 17), 0.95, 0.98, 0.995])
    held = [[e.low <= rate <= e.high for e in found] for rate in rates]
    covered = np.sum(held * scipy_stats.binom(problems, rates[:, None]).pmf(counts), axis=1)
    assert 0.93 < covered.mean() < 0.98
    assert covered.min() > 0.85


@pytest.mark.parametrize("problems", [8, 30])
def test_intervals_of_differences_hold_the_truth_though_few_problems_move(problems):
    """A sample of each hard problem before and after a training that solves a tenth of the problems for good."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        before = rng.binomial(1, 0.02, problems)
        after = rng.binomial(1, np.where(rng.random(problems) < 0.1, 1.0, 0.02))
        e = paired_difference(before, after, 500, seed=1)
        hits += e.low <= 0.1 * (1 - 0.02) <= e.high
    assert scipy_stats.binomtest(hits, 200, 0.95, alternative="less").pvalue > 1e-3


def test_where_many_problems_vary_the_interval_is_the_bootstraps():
    for values in (np.repeat([1.0, 0.0], [5, 95]), np.random.default_rng(1).random(40), np.linspace(-0.1, 0.2, 30)):
        e = estimate(values, 1000, seed=3, ends=(-1, 1))
        assert (e.low, e.high) == bootstrap(values, 1000, seed=3)


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
    assert list(s.scores) == ["avg@4", "pass@1", "pass@2", "pass@3", "pass@4"]
    assert s.scores["avg@4"].value == pytest.approx(5 / 8)
    assert s.scores["pass@2"].value == pytest.approx((1 + 1 / 2) / 2)
    assert s.scores["pass@4"].value == 1
    assert (s.tokens_mean, s.truncated.value, s.answered.value) == ((5 * 10 + 3 * 30) / 8, 3 / 8, 5 / 8)
    assert s.solved.value == 1
    lengths = [10] * 5 + [30] * 3
    assert s.tokens == {f"p{q}": np.percentile(lengths, q) for q in (5, 25, 50, 75, 95)} | {"max": 30}


def test_the_table_shows_powers_of_two_and_all_samples():
    lines = table([made("base", {"a": [True] * 6, "b": [False] * 6})])
    assert [line[0] for line in lines[1:5]] == ["Avg@6", "Pass@2", "Pass@4", "Pass@6"]
    assert lines[5][:2] == ["Problems ever solved", "50.0 [9.5, 90.5]"]


def test_a_comparison_pairs_by_problem_whatever_the_order():
    base = made("base", {"a": [True, False], "b": [False, False], "c": [True, True]})
    trained = made("trained", {"c": [True, True], "b": [True, True], "a": [True, True]}, step=9)
    pair = compare(trained, base, resamples=500, seed=0).paired_with
    assert (pair.name, pair.differences["avg@2"].value) == ("base", pytest.approx(0.5))
    assert pair.differences["pass@2"].value == pytest.approx(1 / 3)


def test_unequal_numbers_of_samples_are_compared_in_what_both_estimate():
    base = made("base", {"a": [True, False, False, False], "b": [False] * 4})
    trained = made("trained", {"a": [True, True], "b": [True, False]})
    differences = compare(trained, base, resamples=200, seed=0).paired_with.differences
    assert {m: e.value for m, e in differences.items()} == {
        "avg@2": pytest.approx((3 / 4 + 1 / 2) / 2), "pass@1": pytest.approx((3 / 4 + 1 / 2) / 2),
        "pass@2": pytest.approx((1 / 2 + 1) / 2),
    }  # fmt: skip


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
    gain = trained.paired_with.differences["avg@2"]
    assert lines[1][1:3] == [percent(score.scores["avg@2"]) for score in (base, trained)]
    assert lines[1][3] == f"+75.0 [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    assert [cell.split()[0] for cell in lines[1]] == ["Avg@2", "25.0", "100.0", "+75.0"]
    assert {len(line) for line in lines} == {4}
    assert str(nan) not in str(lines)


def test_buckets_hold_every_problem_once_by_how_often_the_base_solves_it():
    edges = {0: 0, 1: 1, 4: 1, 5: 2, 8: 2, 9: 3, 12: 3, 13: 4, 15: 4, 16: 5}  # of 16
    assert {c: bucket_of([i < c for i in range(16)]) for c in edges} == edges
    assert [bucket_of([False]), bucket_of([True])] == [0, 5]

    base = made("base", {f"p{c:02}": [i < c for i in range(16)] for c in range(17)} | {"q": [False] * 16})
    better = made("trained", {p: [True] + samples[1:] for p, samples in base.per_problem.items()})
    found = buckets(base, [better], resamples=200, seed=0)
    assert [len(b.problems) for b in found] == [2, 4, 4, 4, 3, 1]
    assert sorted(p for b in found for p in b.problems) == sorted(base.per_problem)
    never = found[0].columns
    assert [(c.name, c.problems_solved, c.avg.value) for c in never] == [("base", 0, 0.0), ("trained", 2, 1 / 16)]
    exact = scipy_stats.binomtest(2, 2).proportion_ci(method="wilson")
    assert (never[1].solved.low, never[1].solved.high) == (exact.low, exact.high)
    lines = bucket_table(found)
    assert lines[0][:2] == ["solved by base", "problems"] and lines[1][:2] == ["never", "2"]
    assert {len(line) for line in lines} == {6}
    with pytest.raises(ValueError, match="same problems"):
        buckets(base, [made("other", {"z": [True]})], resamples=200, seed=0)


def test_an_empty_bucket_has_no_numbers():
    found = buckets(made("base", {"a": [True], "b": [False]}), [], resamples=200, seed=0)
    assert bucket_table(found)[2] == ["1-25%", "0", "-", "-"]
