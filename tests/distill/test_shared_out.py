"""How a step's rows of several teachers become micro-batches: all ranks meet in the same collectives, in one order."""

import random

import pytest

from trd_ray.config import ONLY
from trd_ray.distill.batches import Example, micro_batches, split
from trd_ray.distill.shared_out import cost_of_each, shared_out


def rows(teachers: str, seed: int = 0) -> list[Example]:
    """An example for each letter, which is its teacher's name; a dot stands for the only teacher."""
    rng = random.Random(seed)
    lengths = [(rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 15)) for _ in teachers]
    return [
        Example(i, [1] * s, [2] * t, [3] * r, teacher=ONLY if name == "." else name)
        for i, (name, (s, t, r)) in enumerate(zip(teachers, lengths, strict=True))
    ]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("ranks", "updates"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_one_teacher_is_shared_out_as_ever(packed, ranks, updates):
    examples = rows("." * 13)
    found = shared_out(examples, ranks=ranks, updates=updates, budget_tokens=40, packed=packed)
    by_update = [micro_batches(shares, 40, packed) for shares in split(examples, updates, ranks)]
    assert found.of_ranks == [[update[rank] for update in by_update] for rank in range(ranks)]
    assert found.teachers == [[ONLY] * len(update[0]) for update in by_update]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("teachers", ["abababab", "aaaaaaab", "b", "bbbb", "abcabcabcabcabc", ""])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_i_th_micro_batches_are_of_one_teacher_on_every_rank_also_where_a_rank_has_no_row_of_it(
    packed, teachers, ranks
):
    examples = rows(teachers)
    found = shared_out(examples, ranks=ranks, updates=2, budget_tokens=40, packed=packed, teachers=["c", "a", "b"])
    for rank in found.of_ranks:
        assert [len(update) for update in rank] == [len(whose) for whose in found.teachers]
        for update, whose in zip(rank, found.teachers, strict=True):
            assert all(example.teacher == name for micro, name in zip(update, whose, strict=True) for example in micro)
    trained = [example.row for rank in found.of_ranks for update in rank for micro in update for example in micro]
    assert sorted(trained) == [example.row for example in examples]
    for whose in found.teachers:  # a teacher's stand together, in the order of the recipe
        assert list(dict.fromkeys(whose)) == [name for name in "cab" if name in whose]
        assert sorted(whose, key="cab".index) == whose


def test_updates_take_rows_in_order_whosever_they_are():
    found = shared_out(rows("aaabbb"), ranks=1, updates=3, budget_tokens=1000, packed=True, teachers="ab")
    assert [sorted(e.row for micro in update for e in micro) for update in found.of_ranks[0]] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert found.teachers == [["a"], ["a", "b"], ["b"]]


def test_rows_of_each_teacher_are_balanced_by_its_own_cost():
    cost = cost_of_each({"a": lambda e: 100.0 if e.row == 0 else 1.0, "b": lambda e: 1.0})
    examples = rows("aaaabbbb")
    [one, other] = shared_out(examples, ranks=2, budget_tokens=1000, packed=True, cost=cost, teachers="ab").of_ranks
    of_a = [{e.row for e in rank[0][0]} for rank in (one, other)]
    assert {0} in of_a and {1, 2, 3} in of_a and len(one[0][1]) == len(other[0][1]) == 2


def test_an_example_of_a_stranger_is_an_error_and_not_left_out():
    with pytest.raises(ValueError, match=r"examples of \['x'\], but the teachers are \['a'\]"):
        shared_out(rows("ax"), ranks=1, budget_tokens=10, teachers=["a"])
