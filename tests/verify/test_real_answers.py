r"""Answers as real data has them: several boxes, names, chains, commas. The pairs were judged by hand.

A response of the table that has no box stands in one; kinds "prose" and "last formula" are read without. `<br>` is the
end of a line.
"""

import csv
import time
from pathlib import Path

import pytest

from trd_ray.config import VerifyConfig, load
from trd_ray.errors import UserError
from trd_ray.verify import verifier
from trd_ray.verify.math.boxes import MAX_BOXES, boxes
from trd_ray.verify.math.forms import read
from trd_ray.verify.math.math_verifier import MathVerifier
from trd_ray.verify.math.named_values import ratio_names, solutions
from trd_ray.verify.math.second_reading import second_reading

# Whoever fixes or makes an error changes these counts and the figures in trd_ray/verify/math/README.md.
FALSE_ACCEPTS, UNEQUAL_PAIRS = 0, 238
FALSE_REJECTS, EQUAL_PAIRS = 2, 250
KINDS = {
    "several boxes", "boxes in the expected answer", "named solutions", "named values", "named ratio",
    "tuples in another order", "chain", "relation", "decimal comma", "percent in words", "currency and area",
    "matrix of decimals", "prose", "last formula",
}  # fmt: skip

WITHOUT_BOX = ("prose", "last formula")

with Path(__file__).with_name("real_pairs.tsv").open(newline="", encoding="utf-8") as file:
    PAIRS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval=""))


@pytest.fixture(scope="module")
def verifiers():
    made = MathVerifier(timeout_s=20)

    def of_kind(kind: str) -> MathVerifier:
        made.answer_in_prose, made.answer_in_formula = kind in WITHOUT_BOX, kind == "last formula"
        return made

    yield of_kind
    made.close()


def response(pair: dict) -> str:
    text = pair["response"].replace("<br>", "\n")
    bare = "boxed" in text or pair["kind"] in WITHOUT_BOX
    return text if bare else rf"So the answer is \boxed{{{text}}}."


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_is_accepted_where_it_is_right_and_rejected_where_it_is_wrong(verifiers, kind):
    wrong = []
    for pair in (pair for pair in PAIRS if pair["kind"] == kind):
        verdict = verifiers(kind)(response(pair), {"answer": pair["expected"], "problem": pair["problem"]})
        assert bool(verdict.detail) is not verdict.passed
        if (verdict.passed != (pair["equal"] == "yes")) != (pair["error"] == "known"):
            wrong.append((pair["equal"], pair["expected"], pair["response"], verdict.extracted, verdict.detail))
    assert wrong == []


def test_the_table_has_every_kind_on_both_sides_and_counts_its_errors():
    assert {pair["kind"] for pair in PAIRS} == KINDS
    for equal, known, count in (("no", FALSE_ACCEPTS, UNEQUAL_PAIRS), ("yes", FALSE_REJECTS, EQUAL_PAIRS)):
        of_side = [pair for pair in PAIRS if pair["equal"] == equal]
        assert {pair["kind"] for pair in of_side} == KINDS
        assert (sum(pair["error"] == "known" for pair in of_side), len(of_side)) == (known, count)
    assert len({(p["kind"], p["expected"], p["response"], p["problem"]) for p in PAIRS}) == len(PAIRS)


def test_equality_of_several_parts_does_not_depend_on_the_side(verifiers):
    for pair in PAIRS:
        both = "boxed" not in pair["expected"] + pair["response"] and pair["kind"] in (
            "named solutions", "tuples in another order", "matrix of decimals"
        )  # fmt: skip
        if both:
            verdict = verifiers("")(
                rf"\boxed{{{pair['expected']}}}", {"answer": pair["response"], "problem": pair["problem"]}
            )
            assert verdict.passed == (pair["equal"] == "yes"), pair


@pytest.mark.parametrize(
    ("text", "answers", "joined"),
    [
        (r"\boxed{1}, \boxed{2} and \boxed{3}", ("1", "2", "3"), True),
        (r"$x = \boxed{1}$ and $y=\boxed{2}$", ("x=1", "y=2"), True),
        (r"The first is \boxed{1}. The second is \boxed{2}.", ("1", "2"), False),
        (r"\boxed{9}. Wait. \boxed{1}, \boxed{2}", ("1", "2"), True),
        (r"\boxed{\boxed{1}}, \boxed{2}", ("1", "2"), True),
    ],
)
def test_boxes_that_belong_together_are_one_answer(text, answers, joined):
    found = boxes(text)
    assert found and (found.answers, found.joined) == (answers, joined)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{1}",
        r"\boxed{1} then \boxed{2}",
        r"\boxed{1}. Hence \boxed{2}.",
        r"\boxed{1} + \boxed{2}",
        r"\boxed{1} = \boxed{2}",
        r"\boxed{3}, \boxed{3}",
        r"\boxed{}, \boxed{3}",
        r"\boxed{\boxed{5}}",
        r"\boxed{1}, " * (MAX_BOXES + 1),
        r"\boxed{1}" + " and on it went" * 20 + r" \boxed{2}",
    ],
)
def test_a_last_box_that_the_others_lead_to_stands_alone(text):
    assert boxes(text) is None


def test_what_was_found_in_several_boxes_is_what_a_refiner_is_told(verifiers):
    verdict = verifiers("")(r"$x = \boxed{1}$ and $y = \boxed{2}$", {"answer": "(1,3)"})
    assert verdict.extracted == "x=1 ; y=2" and verdict.feedback.endswith("x=1 ; y=2")


def test_a_chain_is_no_way_to_an_answer_that_its_own_numbers_deny(verifiers):
    for written, passed in (("x + y = 3 + 4 = 7", True), ("x + y = 3 + 5 = 7", False), ("2x = 7 + 0 = 7", True)):
        assert verifiers("")(rf"\boxed{{{written}}}", {"answer": "7"}).passed is passed, written


HOSTILE = {
    "boxes": r"\boxed{1}, " * 100_000,
    "boxes in words": r"\boxed{1} the other is " * 50_000,
    "open boxes": r"\boxed{" * 100_000 + "1}, " * 100_000,
    "boxes of lists": ", ".join(rf"\boxed{{{','.join(map(str, range(i, i + 40)))}}}" for i in range(12)),
    "names": r"\boxed{" + ",".join(f"x_{i}={i}" for i in range(200)) + "}",
    "solutions": r"\boxed{" + ";".join("p=5,q=2" for _ in range(200)) + "}",
    "ratio": r"\boxed{" + ":".join("ab" for _ in range(600)) + "}",
    "fractions of names": r"\boxed{" + r"\frac{a}{" * 30 + "b" + "}" * 30 + "=1}",
    "chain": r"\boxed{" + "=".join("x+1" for _ in range(400)) + "}",
    "chain of towers": r"\boxed{a = 9^{9^{9^9}} = 9^{9^{9^{9}}} = b}",
    "commas": r"\boxed{" + ",".join("1,5" for _ in range(400)) + "}",
    "tuples": r"\boxed{" + r"(1,2)\quad" * 180 + "(1,2)}",
    "open tuples": r"\boxed{" + "(1,,,," * 300 + "}",
    "rows": r"\boxed{[" + ",".join("[1,2]" for _ in range(300)) + "]}",
    "scaled matrix": r"\boxed{9^{9^{9^9}}\begin{pmatrix}" + r"1&2\\" * 100 + r"3&4\end{pmatrix}}",
    "dollars": "$1$ " * 100_000,
    "displays": r"\[ 1 " * 100_000,
    "ranges": r"\boxed{" + " and ".join(f"x>{i}" for i in range(200)) + "}",
}


@pytest.fixture(scope="module")
def hasty():
    made = MathVerifier(timeout_s=0.5, answer_in_prose=True, answer_in_formula=True)
    made(r"\boxed{x}", {"answer": "y"})  # the child is started, so that only the comparison is timed
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_to_the_new_readings_ends_in_a_verdict_in_time(hasty, name):
    for answer in ("5+x", "(1,2),(3,4)", "x=1,y=2", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"):
        start = time.monotonic()
        assert not hasty(HOSTILE[name], {"answer": answer}).passed
        assert not hasty(rf"\boxed{{{answer}}}", {"answer": HOSTILE[name]}).passed
        assert time.monotonic() - start < 6


def test_readings_take_linear_time_however_often_a_pattern_almost_fits():
    start = time.monotonic()
    for piece in ("(1,2) ", "1,5 ", "a:", r"\frac{a}{", "{", "[[", "Rs. ", "x=1,", r"\text{", "twenty-"):
        answer = piece * (1900 // len(piece))
        for function in (ratio_names, lambda text: second_reading.__wrapped__(text, True)):
            try:
                function(answer)
                solutions(read(answer))
            except ValueError:
                pass  # too deep, which the verifier says
    assert time.monotonic() - start < 5


def test_the_last_formula_counts_only_by_its_switch():
    text = "We multiply and find that $x = 42$ holds."
    for keys in ({}, {"answer_in_prose": True}, {"answer_in_prose": True, "answer_in_formula": True}):
        made = verifier(VerifyConfig.model_validate(keys))
        assert made(text, {"answer": "42", "problem": ""}).passed is (len(keys) == 2)
        made.close()


def test_the_switch_without_prose_is_refused_with_the_key_to_set():
    with pytest.raises(UserError, match="set verify.answer_in_prose=true"):
        load("smollm2_smoke", ["verify.answer_in_formula=true"])
    assert load("smollm2_smoke", ["verify.answer_in_prose=true", "verify.answer_in_formula=true"])
