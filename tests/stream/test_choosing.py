"""Which refinement becomes y_r, and by how much it may differ from the attempt."""

import math
import random
import time

import numpy as np
import pytest

from trd_ray.engine.actor import Generation
from trd_ray.stream.choosing import RefineCandidate, choose, mean_logprob, scoring, to_score
from trd_ray.stream.edits import edited_places, edited_share

RULES = ("first", "first_passed", "shortest_passed", "best_score", "nearest")


def candidates(tokens: list[int], passed: list[bool], **columns: list) -> list[RefineCandidate]:
    made = [RefineCandidate(n, has, float(has)) for n, has in zip(tokens, passed, strict=True)]
    for name, values in columns.items():
        for candidate, value in zip(made, values, strict=True):
            setattr(candidate, name, value)
    return made


@pytest.mark.parametrize(
    ("passed", "lengths", "first", "first_passed", "shortest_passed", "best_score"),
    [
        ([True, True, True], [5, 3, 4], 0, 0, 1, 1),
        ([False, True, True], [1, 5, 4], 0, 1, 2, 2),
        ([False, True, True], [1, 4, 4], 0, 1, 1, 1),
        ([False, False, False], [5, 3, 4], 0, 0, 0, 0),
        ([False], [0], 0, 0, 0, 0),
    ],
)
def test_the_refinement_is_selected_by_rule(passed, lengths, first, first_passed, shortest_passed, best_score):
    chosen = [choose(candidates(lengths, passed), rule) for rule in RULES[:4]]
    assert chosen == [first, first_passed, shortest_passed, best_score]


def test_partial_credit_counts_and_of_equal_failures_the_first_is_kept_not_the_emptiest():
    better = candidates([9, 1, 8], [False] * 3, score=[0.25, 0.0, 0.5])
    assert choose(better, "best_score") == 2
    assert choose(candidates([9, 1, 8], [False] * 3, score=[0.5] * 3), "best_score") == 0
    assert choose(candidates([9, 7, 8], [True] * 3, score=[0.75] * 3), "best_score") == 1
    assert choose(candidates([9, 7], [False, True], score=[0.5, 0.5]), "best_score") == 1
    assert choose(candidates([9, 7], [False, False], score=[math.nan, 0.0]), "best_score") == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_refinement_that_could_not_be_judged_costs_no_row_that_has_another(rule):
    lost = candidates([1, 9, 7], [False] * 3, score=[0.0, -0.5, -0.25], judged=[False, True, True])
    assert choose(lost, rule) == (2 if rule == "best_score" else 1)  # scores below 0 are worse than none
    assert choose(candidates([1, 9], [False] * 2, judged=[False, False]), rule) == 0
    strayed = candidates([1, 9], [False] * 2, judged=[False, True], edited_share=[0.1, 0.9])
    assert choose(strayed, rule, 0.5) == 1


def test_nearest_is_the_likeliest_a_token_of_those_that_pass_and_of_equal_ones_the_shortest():
    passed = [True, False, True, True]
    those = candidates([40, 5, 20, 90], passed, logprob=[-0.5, -0.01, -0.8, -0.2])
    assert choose(those, "nearest") == 3  # the sum would take the shortest of them, -16 against -18 and -20
    assert choose(candidates([40, 5, 20, 30], passed, logprob=[-0.5, None, -0.5, -0.5]), "nearest") == 2
    assert choose(candidates([40, 5, 20, 30], passed, logprob=[None, None, None, -9.0]), "nearest") == 3
    assert choose(candidates([40, 5], [False, False]), "nearest") == 0


def test_only_those_whose_likelihood_decides_are_scored():
    those = candidates([1, 2, 3], [True, False, True])
    assert to_score(those, "nearest") == [0, 2]
    assert [to_score(those, rule) for rule in RULES[:4]] == [[]] * 4
    assert to_score(those[:2], "nearest") == []  # a single one needs no likelihood
    strayed = candidates([1, 2, 3], [True] * 3, edited_share=[0.9, 0.1, 0.3])
    assert to_score(strayed, "nearest", 0.5) == [1, 2]
    assert to_score(strayed, "nearest", 0.2) == []
    assert to_score(strayed, "nearest", 0.05) == []  # the row is dropped, whichever is chosen


@pytest.mark.parametrize("rule", RULES)
def test_a_refinement_that_strays_counts_as_not_there_unless_all_do(rule):
    those = candidates([3, 2, 4], [True] * 3, edited_share=[0.7, 0.8, 0.5], logprob=[-0.1, -0.2, -3.0])
    assert choose(those, rule, 0.5) == 2  # the limit itself is within it
    assert choose(those, rule, 0.4) == choose(those, rule)


def test_the_likelihood_is_asked_of_the_response_alone_after_the_student_s_own_prompt():
    request = scoring([7, 8, 9], np.array([4, 5], np.int32))
    assert list(request.prompt_ids) == [7, 8, 9, 4, 5] and request.prompt_logprobs and request.adapter
    told = Generation(np.array([1]), "", "length", np.zeros(1), 3, "e", 0.0, 0.0)
    told.prompt_logprobs = np.array([-9.0, -9.0, -1.0, -2.0], np.float32)  # none of the first token
    assert mean_logprob(told, 2) == pytest.approx(-1.5)
    told.prompt_logprobs = np.array([-np.inf, -1.0], np.float32)
    assert mean_logprob(told, 2) is None
    assert mean_logprob(Generation.refusal("ValueError: too long", 3, "e", 0.0), 2) is None


# The edited share


def by_the_table(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_the_edited_share_is_that_of_the_plain_table():
    draw = random.Random(0)
    for _ in range(600):
        words = draw.choice([1, 2, 4, 30])
        a, b = ([draw.randrange(words) for _ in range(draw.randint(0, 24))] for _ in range(2))
        assert edited_share(a, b) == edited_share(b, a) == by_the_table(a, b) / (max(len(a), len(b)) or 1)


def test_what_both_begin_and_end_with_costs_nothing():
    draw = random.Random(1)
    text = [draw.randrange(50) for _ in range(40_000)]
    changed = [*text[:20_000], 99, *text[20_003:]]
    began = time.process_time()
    assert edited_share(text, changed) == 3 / 40_000 and edited_share(text, text) == 0
    assert edited_share(text[:7], text) == 39_993 / 40_000
    assert time.process_time() - began < 1  # half a minute where all of it is compared


def test_the_edited_share_goes_from_nothing_to_all():
    y_o = np.array([1, 2, 3, 4], np.int32)
    assert edited_share(y_o, [1, 2, 3, 4]) == 0 and edited_share([], []) == 0
    assert edited_share(y_o, [1, 2, 9, 4]) == 0.25
    assert edited_share(y_o, [5, 6, 7, 8]) == edited_share(y_o, []) == edited_share([], [7]) == 1
    assert edited_share(y_o, [1]) == edited_share([1], y_o) == 0.75  # what is left out is edited too


def test_texts_of_the_paper_s_length_are_compared_in_the_time_of_a_rollout():
    draw = random.Random(0)
    long, short = ([draw.randrange(150_000) for _ in range(n)] for n in (16_384, 1_000))
    began = time.process_time()
    assert 0.9 < edited_share(long, short) <= 1
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("y_o", "y_r", "places"),
    [
        ("abcde", "abcde", []),
        ("abcde", "abxde", [2]),
        ("abcde", "abde", [2]),  # something is left out: what comes next is where the two part
        ("abcde", "abc", []),
        ("abcde", "cde", [0]),
        ("abde", "abcde", [2]),
        ("abcd", "abcde", [4]),
        ("", "ab", [0, 1]),
        ("ab", "", []),
        ("abc", "xyz", [0, 1, 2]),
    ],
)
def test_what_a_refinement_edits(y_o, y_r, places):
    assert edited_places([*map(ord, y_o)], [*map(ord, y_r)]).tolist() == places


def common(a: list[int], b: list[int]) -> int:
    """The length of a longest common subsequence, by its table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_what_is_not_edited_stands_in_the_attempt_run_by_run_and_no_more_is_edited_than_must_be():
    draw = random.Random(0)
    for _ in range(1000):
        words = draw.randint(1, 5)
        y_o, y_r = ([draw.randrange(words) for _ in range(draw.randint(0, 12))] for _ in range(2))
        edited = set(edited_places(y_o, y_r).tolist())
        kept = [token for place, token in enumerate(y_r) if place not in edited]
        gaps = len(y_r) - len(edited)
        assert gaps == len(kept) <= common(y_o, y_r)
        rest = iter(y_o)
        assert all(token in rest for token in kept), "a subsequence"
        runs = "".join("|" if place in edited else chr(97 + token) for place, token in enumerate(y_r)).split("|")
        assert all(run in "".join(chr(97 + token) for token in y_o) for run in runs)
        # Of the edited tokens those that y_o has too each stand after a gap, of which each costs a token of y_o.
        assert len(edited) - (len(y_r) - common(y_o, y_r)) <= len(y_o) - common(y_o, y_r)
