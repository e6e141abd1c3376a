"""Where the equations of a response stand, and which of them began from a right value."""

import random

import pytest

from trd_ray.miniature import tokenizer
from trd_ray.miniature.beliefs import certain
from trd_ray.miniature.equations import equations
from trd_ray.miniature.halves import parsed
from trd_ray.miniature.task import OPERANDS, SECRET, compute, random_chain, talk, text

CHAIN = parsed("9+1-3-2")  # 9+1=0; 0-3=7; 7-2=5
WORDS = tokenizer.build()


def found(response: str, chain=CHAIN):
    return equations(chain, WORDS.tokenize(response))


def test_a_right_solution_has_an_equation_for_each_step_and_every_prefix_is_right():
    steps = found("9+1=0; Hmm 0-3=7; 7-2=5; \\boxed{5}")
    assert [(one.operator, one.local, one.reference, one.right_prefix) for one in steps] == [
        ("+", 0, 0, True),
        ("-", 7, 7, True),
        ("-", 5, 5, True),
    ]
    tokens = WORDS.tokenize("9+1=0; Hmm 0-3=7; 7-2=5; \\boxed{5}")
    assert [tokens[one.place] for one in steps] == ["0", "7", "5"]


def test_after_a_wrong_result_the_prefix_is_wrong_and_the_two_right_results_differ():
    first, second, third = found("9+1=2; 2-3=9; 9-2=7; \\boxed{7}")
    assert first.right_prefix and not second.right_prefix and not third.right_prefix
    assert (second.local, second.reference) == (9, 7) and (third.local, third.reference) == (7, 5)


def test_a_second_look_is_no_step_and_a_mind_that_it_changes_counts():
    first, second = found("9+1=2; Wait 9+1=0; Check 9+1=0; So 0-3=7;")
    assert first.right_prefix and second.right_prefix and second.local == 7


@pytest.mark.parametrize("response", ["", "Hmm", "9+1=", "0-3=7; 7-2=5;", "9+1+0;", "9+2=1;", "\\boxed{5}"])
def test_what_is_no_step_of_the_chain_ends_it(response):
    assert found(response) == []


def test_more_steps_than_the_chain_has_are_left_out():
    assert len(found("9+1=0; 0-3=7; 7-2=5; 5-2=3;")) == 3


def test_whatever_the_student_writes_in_its_own_style_is_understood():
    rng = random.Random(3)
    for _ in range(200):
        chain = random_chain(rng, (2, 6))
        steps = found(text(talk(chain, certain(SECRET), rng, slip=0.3)), chain)
        assert [one.operator for one in steps] == [op for op, _ in chain.steps] and steps[0].right_prefix


def test_no_step_makes_a_wrong_value_right():
    for op in "+-@":
        for right in OPERANDS:
            assert len({compute(left, op, right, SECRET) for left in range(10)}) == 10
