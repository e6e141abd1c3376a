"""The default words around a problem are those for what judges it, row by row and set by set."""

from typing import Any

import pytest

from trd_ray import config
from trd_ray.miniature import model_path
from trd_ray.models import tokenizer
from trd_ray.preflight.known_texts import form_of, right_texts
from trd_ray.problems.load import held_out_task
from trd_ray.views import Views
from trd_ray.wordings import ITEM_FORM

SUM = "What is 1+1?"
ITEM = f"Spell it backward: abc\n\n{ITEM_FORM}"
GYM = {"path": "reasoning_gym:spell_backward"}
OWN = "package.module:score"


class Words(Views):
    """Which of the default wordings each view has."""

    def words_of(self, problem: str, source: str | None = None, task: str | None = None) -> str:
        one = self._of(source, problem, task)
        [name] = [name for (_, name), made in self._worded.items() if made is one]
        return name


@pytest.fixture(scope="module")
def miniature():
    return tokenizer(str(model_path("student")))


def views(miniature, tree: dict[str, Any]) -> Words:
    return Words(config.from_tree(tree), miniature, miniature)


@pytest.mark.parametrize(
    ("tree", "of_sum", "of_item"),
    [
        ({}, "math", "plain"),
        ({"data": GYM}, "math", "plain"),
        ({"data": {"source": "corpus", "path": "runs/corpus"}}, "math", "plain"),
        ({"data": GYM, "prompts": {"task": "math"}}, "math", "math"),
        ({"prompts": {"task": "plain"}}, "plain", "plain"),
        ({"data": GYM, "verify": {"function": "math"}}, "math", "math"),
        ({"data": GYM, "verify": {"function": "reasoning_gym"}}, "plain", "plain"),
        ({"verify": {"function": OWN}}, "plain", "plain"),
        ({"verify": {"function": "code"}}, "code", "code"),
    ],
)
def test_a_row_has_the_words_for_what_judges_it_also_in_a_corpus(miniature, tree, of_sum, of_item):
    found = views(miniature, tree)
    assert (found.words_of(SUM), found.words_of(ITEM)) == (of_sum, of_item)


SOURCES = [
    {"name": "sums", "path": "a.jsonl", "verify": "math"},
    {"name": "items", **GYM},
    {"name": "json", "path": "c.jsonl", "verify": "mine"},
    {"name": "boxed", "path": "d.jsonl", "verify": "mine", "prompts": {"task": "math"}},
    {"name": "code", "path": "e.jsonl", "verify": "code"},
]
MIXED = {"data": {"sources": SOURCES}, "verify": {"functions": {"mine": {"function": OWN}}}}


def test_each_source_has_the_words_for_its_verifier_unless_it_says_others(miniature):
    found = views(miniature, MIXED)
    words = {one["name"]: found.words_of(ITEM if one["name"] == "items" else SUM, one["name"]) for one in SOURCES}
    assert words == {"sums": "math", "items": "plain", "json": "plain", "boxed": "math", "code": "code"}
    row = {"problem_id": "p", "problem": SUM, "answer": "2", "reference": "", "tests": None}
    rows = [row | {"source": one["name"]} for one in SOURCES if one["name"] != "items"]
    told = right_texts(rows, form_of(config.from_tree(MIXED)))
    stated = {rows[text.row]["source"]: text.text for text in told}
    boxed = r"\boxed{2}"
    assert stated == {"sums": boxed, "json": "2", "boxed": boxed, "code": "2"}


@pytest.mark.parametrize(
    ("path", "verify", "has_tests", "problem", "task"),
    [
        ("aime24", {"function": OWN}, False, SUM, "math"),  # a benchmark has rules of its own
        ("humaneval", {"function": OWN}, True, SUM, "code"),
        ("humaneval", {}, True, SUM, "code"),
        (GYM["path"], {"function": "math"}, False, ITEM, "plain"),
        ("held_out.jsonl", {"function": OWN}, False, SUM, "plain"),
        ("held_out.jsonl", {}, False, SUM, "math"),
        ("held_out.jsonl", {"function": "math"}, True, SUM, "math"),
        ("held_out.jsonl", {"functions": {"a": {"function": "math"}, "b": {"function": OWN}}}, False, SUM, "plain"),
    ],
)
def test_held_out_problems_are_asked_in_the_words_for_what_judges_them(
    path, verify, has_tests, problem, task, miniature
):
    recipe = config.from_tree({"data": GYM, "verify": verify, "evaluation": {"path": path}})
    assert held_out_task(recipe.evaluation, recipe.verify, problem, has_tests) == task
    found = Words(recipe, miniature, miniature)
    assert found.words_of(problem, None, task) == task
    said = config.from_tree({"prompts": {"task": "plain"}, "evaluation": {"path": path}})
    assert Words(said, miniature, miniature).words_of(problem, None, task) == "plain"  # the recipe's word counts
    form = form_of(recipe, task=task)({"problem": "", "source": None})
    assert form == (r"\boxed{ANSWER}" if task == "math" else "ANSWER")


def test_a_maths_set_beside_items_is_asked_for_a_box_and_an_item_is_not(bpe):
    recipe = config.from_tree({"data": GYM, "evaluation": {"path": "aime24"}})
    found = Views(recipe, bpe, bpe)
    asked = (
        bpe.decode(found.evaluation(SUM, task="math")),
        bpe.decode(found.student(ITEM)),
        bpe.decode(found.student(SUM)),
    )
    assert ["boxed" in text for text in asked] == [True, False, True]
    attempt = bpe("no", add_special_tokens=False).input_ids
    assert "boxed" not in bpe.decode(found.refine(ITEM, "", attempt).ids)
