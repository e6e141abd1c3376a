"""What speaks of a reference or an attempt is found; what only sounds like it is not."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from trd_ray.diagnostics.leaks import LEAKS, leak, leaks

SAID = {
    "reference solution": [
        "As the reference solution shows, x = 2.",
        "This matches the reference answer.",
        "The official solutions use induction.",
        "compared with the ground-truth answer",
    ],
    "the reference": ["According to the reference, the sum is 7.", "This agrees with the reference and we are done."],
    "the reference says": ["But the given reference states that n is odd."],
    "provided solution": ["We follow the provided solution here."],
    "earlier attempt": ["The previous attempt dropped a sign.", "Unlike the flawed attempt's last step, we divide."],
    "the attempt": ["In the attempt, 7 was carried.", "The attempt's approach is right.", "The attempt is incorrect."],
    "the student": ["The student's solution forgot the case n = 0."],
    "the original solution": ["The previous answer was wrong, so we recompute."],
    "rewriting": ["Rewritten solution:\n\nLet x = 2.", "Here is the corrected solution."],
    "feedback": ["The checker found it wrong, so we look again."],
    "reference, in Chinese": ["根据参考答案，x = 2。"],
}
NOT_SAID = [
    "The reference angle is 30 degrees, and from the reference frame of the train it rests.",
    "Choose a point of reference. Sum the cells by reference; pass a reference to the list.",
    "The attempt to factor fails, so we complete the square.",
    "He succeeds on the first attempt with probability 1/3, and each attempt is independent.",
    "We attempt a substitution. My first attempt at this gave 3, but 4 is right.",
    "The original solution contains 20% salt, and the given solution 30%.",
    "The equation can be rewritten as x^2 = 4, and the answer is correct.",
    "The initial solution of the simplex method is wrong only where b < 0.",
    "The student has 5 apples; the user's input is read from stdin.",
    "The provided string is reversed, and the previous answer is added to it.",
    "A checker board has 64 squares.",
    "The solution of the previous equation is correct to 3 digits.",
]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SAID.items() for text in texts])
def test_each_pattern_finds_what_it_is_for_whatever_the_case(name, text):
    assert leak(text).pattern == name
    assert leak(text.upper()) and leak(text.lower())


def test_every_pattern_is_tried():
    assert set(SAID) == {one.name for one in LEAKS}
    assert len({one.name for one in LEAKS}) == len(LEAKS) and all(one.reason for one in LEAKS)
    assert all(one.word == one.word.lower() for one in LEAKS)


@pytest.mark.parametrize("text", NOT_SAID)
def test_what_only_sounds_like_a_leak_is_none(text):
    assert leak(text) is None


def test_a_problem_that_speaks_of_attempts_may_be_answered_in_its_own_words():
    text = "In the attempt, he scores 3 points. The previous attempt scored 2."
    assert leak(text, "An athlete has three attempts. What is his mean?") is None
    assert leak(text, "What is 2 + 3?")
    assert leak("As in the reference solution, x = 2.", "An athlete has three attempts.")


def test_what_is_shown_is_the_leak_with_its_neighbours():
    found = leak("a" * 100 + " the reference solution " + "b" * 100)
    assert found.text == "..." + "a" * 55 + " the reference solution " + "b" * 59 + "..."
    assert leak("the reference solution").text == "the reference solution"


def test_rows_are_found_by_pyarrow_s_engine_as_by_python_s():
    texts = [text for some in SAID.values() for text in some] + NOT_SAID + [None, ""]
    found = dict(leaks(pa.array(texts), None))
    assert found == {i: its for i, text in enumerate(texts) if text and (its := leak(text))}
    for one in LEAKS:
        told = pc.match_substring_regex(pa.array(texts[:-2]), f"(?i){one.pattern}").to_pylist()
        assert [text for text, is_one in zip(texts, told, strict=False) if is_one and leak(text) is None] == []
    problems = pa.array(["a reference, an attempt"] * len(texts))
    assert len(dict(leaks(pa.array(texts), problems))) < len(found)


def test_no_pattern_takes_long_on_a_hostile_text():
    text = ("in the attempt" + " " * 50 + "the reference ") * 4000
    assert leak(text) is not None
    assert leak("the given " * 40_000) is None
