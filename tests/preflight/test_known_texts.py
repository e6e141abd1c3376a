"""Texts whose verdict is known: what is surely right, what is surely wrong, and in which form an answer is stated."""

import time

import pytest

from trd_ray import config
from trd_ray.preflight.known_texts import KnownText, Reply, asked, form_of, right_texts, wrong_texts
from trd_ray.preflight.soundness import Soundness
from trd_ray.verify import Verdict


def row(answer: str, reference: str = "", tests: bytes | None = None, problem: str = "1+1") -> dict:
    return {"problem_id": answer, "problem": problem, "answer": answer, "reference": reference, "tests": tests}


def boxed(row: dict) -> str:
    return r"\boxed{ANSWER}"


def alone(row: dict) -> str:
    return "ANSWER"


@pytest.mark.parametrize(
    ("tree", "form"),
    [
        ({}, r"\boxed{ANSWER}"),
        ({"prompts": {"solve": "{problem}"}}, r"\boxed{ANSWER}"),
        ({"prompts": {"solve": "{problem} End with #### and the answer."}}, "#### ANSWER"),
        ({"prompts": {"solve": "{problem}", "system": "Answer within <answer> tags."}}, "<answer>ANSWER</answer>"),
        ({"verify": {"task": "code"}}, "ANSWER"),
    ],
)
def test_an_answer_is_stated_as_the_prompt_asks_for_it(tree, form):
    assert form_of(config.from_tree(tree))(row("2")) == form


def test_the_prompt_of_a_source_says_how_its_answers_are_stated():
    sources = [
        {"name": "gsm8k", "path": "a.jsonl", "prompts": {"solve": "{problem} End with #### and the answer."}},
        {"name": "plain", "path": "b.jsonl", "prompts": {"task": "plain"}},
        {"name": "usual", "path": "c.jsonl"},
    ]
    form = form_of(config.from_tree({"data": {"sources": sources}}))
    asked_for = {"gsm8k": "#### 2", "plain": "2", "usual": r"\boxed{2}", None: r"\boxed{2}"}
    rows = [row("2") | {"source": source} for source in asked_for]
    assert [text.text for text in right_texts(rows, form)] == list(asked_for.values())


@pytest.mark.timeout(20)
def test_an_answer_with_a_power_of_thousands_of_digits_is_compared_as_text():
    right = [Reply(KnownText(0, "answer", "1e9999999999"), Verdict(True, 1.0, "", "", 0.0), 0.0)]
    assert wrong_texts([row("1e9999999999"), row("2")], right)[-1].text == "1e9999999999"


@pytest.mark.parametrize(
    ("teachers", "shown"),
    [
        ({"a": {"mode": "opd", "path": "big"}, "b": {"mode": "opsd"}}, True),
        ({"a": {"mode": "opd", "path": "big"}, "b": {"mode": "opd", "path": "bigger"}}, False),
    ],
)
def test_references_count_as_shown_where_one_of_several_teachers_is_the_privileged_self(teachers, shown):
    recipe = config.from_tree({"teachers": teachers, "data": {"teacher_column": "topic"}})
    assert recipe.shows_reference == shown
    rows = [row(str(n), rf"so \boxed{{{n + 1}}}") for n in range(8)]
    texts = right_texts(rows, boxed)
    wrong = Verdict(False, 0.0, "9", "", 0.0)
    replies = [Reply(one, Verdict(True, 1.0, "", "", 0.0) if one.kind == "answer" else wrong, 0.0) for one in texts]
    faults = Soundness(rows, replies, boxed, recipe.shows_reference).faults()
    assert [("the teacher is shown them" in fault) for fault in faults] == ([True] if shown else [])


def test_a_row_s_reference_and_answer_are_right_and_a_program_is_fenced():
    found = right_texts([row("2", "1+1=2"), row("", "print(2)\n", b"tests"), row("")], boxed)
    assert [(text.row, text.kind, text.text) for text in found] == [
        (0, "reference", "1+1=2"),
        (0, "answer", r"\boxed{2}"),
        (1, "reference", "```python\nprint(2)\n```"),
    ]


def test_an_answer_that_is_boxed_already_is_not_boxed_again():
    assert right_texts([row(r"\boxed{2}")], boxed)[0].text == r"\boxed{2}"


@pytest.mark.parametrize("spelling", ["0.5", "1/2", r"\frac{1}{2}", " $0.50$ "])
def test_the_same_answer_in_another_spelling_is_never_taken_for_a_wrong_one(spelling):
    rows = [row("0.5"), row(spelling), row("3")]
    right = [Reply(text, Verdict(True, 1.0, "", "", 0.0), 0.0) for text in right_texts(rows, alone)]
    assert {(text.row, text.text) for text in wrong_texts(rows, right) if text.kind == "another"} == {
        (0, "3"),
        (1, "3"),
        (2, "0.5"),
    }


def test_asking_ends_in_time_after_whole_rows():
    rows = [row("1"), row("2")]
    texts = [KnownText(i, "answer", "x") for i in (0, 0, 1)]
    replies = asked(lambda text, problem: Verdict(True, 1.0, "", "", 0.0), rows, texts, until=time.monotonic() - 1)
    assert [reply.asked.row for reply in replies] == [0, 0]


def test_a_program_without_a_reference_is_not_held_against_the_verifier():
    rows = [row("", tests=b"tests", problem=f"Print {i}.") for i in range(9)]
    replies = asked(
        lambda text, problem: Verdict(False, 0.0, "", "x", 0.0), rows, wrong_texts(rows, []), time.monotonic() + 9
    )
    found = Soundness(rows, replies, alone)
    assert found.faults() == []
    assert found.counts()[0] == ("the reference or the answer", "not asked: no row has one")
