"""Held-out problems that are trained on are found however they are dressed, and others are left alone."""

import random
import time

import pytest

from trd_ray.preflight import overlap

TREES = "A gardener plants 12 rows of 7 trees, and 9 of the trees do not live. How many trees live?"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  x.\n", "find x"),
        ("What is 1 + 1?", "What is 1+1"),
        (r"Solve $x^2 = 4$.", r"Solve \(x^2=4\)"),
        (r"Solve $x \, = \; \dfrac{1}{2}$", r"Solve $$x=\frac{1}{2}$$"),
        (r"Solve $\left( x+1 \right)\quad = 2$", "Solve $(x+1)=2$"),
        ("“Was ist 1\u00a0+\u00a01?”", '"was ist 1+1"'),
        ("\uff11 + \uff11", "1+1"),
    ],
)
def test_two_copies_of_a_problem_are_the_same(one, other):
    assert overlap.normalised(one) == overlap.normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 1 2?", "What is 12?"),
        ("What is 5!", "What is 5?"),
        ("Solve x + 1 = 2", "Solve x - 1 = 2"),
        (r"Draw \leftarrow", r"Draw \rightarrow"),
        ("8-3@1@2", "8-3@1+2"),
    ],
)
def test_two_problems_are_not_the_same(one, other):
    assert overlap.normalised(one) != overlap.normalised(other)


def test_held_out_problems_that_are_trained_on_are_counted_and_one_is_shown():
    found = overlap.overlap(["1 + 1", "2 + 2", TREES], ["3+3", "2+2?", TREES.upper(), "4+4"])
    assert (found.trained_on, found.held_out, found.example, found.close) == (2, 4, "2+2?", 0)
    assert str(found) == "2 of 4 held-out problems are trained on"
    assert str(overlap.overlap(["1"], ["2", "3"])) == "none of 2 held-out problems is trained on"


def test_a_problem_of_which_half_is_trained_on_comes_close_and_a_short_one_never():
    longer = f"{TREES} Give the number alone."
    other = "How many trees live in a garden of 12 rows, if a gardener plants 7 in each and 9 of them die?"
    found = overlap.overlap([longer, "What is two and two?"], [TREES, other, "What is two and three?"])
    assert (found.trained_on, found.close) == (0, 1)
    assert "1 more shares half of the text or more with training problems" in str(found)


def test_of_too_much_text_a_sample_is_searched_for_close_problems_and_all_of_it_for_the_same(monkeypatch):
    monkeypatch.setattr(overlap, "CLOSE_CHARACTERS", 200)
    trained = [f"{TREES} Problem {i}." for i in range(10)]
    found = overlap.overlap(trained, [trained[7], TREES])
    assert (found.trained_on, found.close, found.trained) == (1, 1, 10) and found.searched < 5
    assert f"({found.searched} of 10 searched)" in str(found)


def synthetic(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"word{rng.randrange(20_000)}" for _ in range(60)) for _ in range(n)]


def test_close_problems_are_those_that_sets_of_runs_tell():
    rng, trained, held_out = random.Random(0), synthetic(200, 1), []
    for i, text in enumerate(synthetic(100, 2)):
        share = rng.randrange(61)
        held_out.append(" ".join(trained[i].split()[:share] + text.split()[share:]))

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    everywhere = set().union(*map(runs, trained))
    expected = [len(runs(text) & everywhere) >= len(runs(text)) / 2 for text in held_out]
    assert overlap.come_close(trained, held_out) == expected and 20 < sum(expected) < 80


def test_forty_thousand_problems_are_compared_in_seconds():
    trained, held_out = synthetic(40_000, 1), synthetic(500, 2)
    begin = time.process_time()
    found = overlap.overlap(trained, [*held_out, *trained[:3]])
    assert found.trained_on == 3 and found.searched == 40_000
    assert time.process_time() - begin < 20  # 3 s where this was written
