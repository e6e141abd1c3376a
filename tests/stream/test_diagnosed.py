"""Which rows of a step are looked at more closely, and in which views the learner is to score them."""

from itertools import product
from typing import Any

import pytest
from test_examples import PROMPTS, tokenizer  # noqa: F401 - a fixture

from trd_ray import config
from trd_ray.config import ONLY
from trd_ray.rows import to_table
from trd_ray.stream.diagnosed import Bounds, ToScore, chosen, looks
from trd_ray.views import Views

ROOMY = Bounds(1000, {ONLY: 1000})
NO_R = (True, None)


def judged(number: int, cell: tuple[bool | None, bool | None], **columns: Any) -> dict[str, Any]:
    y_o, y_r = cell
    refined = None if y_r is None else {"ids": [6], "passed": y_r}
    return {"row": number, "fault": None, "y_o": {"ids": [5], "passed": y_o}, "y_r": refined} | columns


def numbers(rows: list[dict[str, Any]], count: int) -> list[int]:
    return [row["row"] for row in chosen(rows, count)]


def test_rows_are_taken_in_turn_from_the_cells_of_the_ledger_so_that_rare_cells_are_seen():
    both = [(True, True)] * 10
    rows = [judged(i, cell) for i, cell in enumerate([*both, (False, False), (False, True), (True, False)])]
    assert numbers(rows, 4) == [0, 10, 11, 12]
    assert numbers(rows, 6) == [0, 1, 2, 10, 11, 12]
    assert numbers(rows, 1) == [11]  # a repaired one
    assert numbers(rows, 99) == list(range(13)) and numbers(rows, 0) == []


def test_what_was_not_refined_comes_after_the_four_cells_and_a_row_with_a_fault_never():
    rows = [judged(0, NO_R), judged(1, (True, True)), judged(2, (False, True), fault="refused"), judged(3, NO_R)]
    assert numbers(rows, 1) == [1] and numbers(rows, 2) == [0, 1] and numbers(rows, 9) == [0, 1, 3]


@pytest.fixture
def look(tokenizer):  # noqa: F811
    """(row, trajectory, view) -> the words of the teacher's prompt and of the response, of a step with some rows."""

    def make(rows: list[dict], count: int = 9, bounds: Bounds = ROOMY, **tree: Any) -> dict[tuple, tuple[str, str]]:
        recipe = config.from_tree({"prompts": PROMPTS} | tree)
        views = {name: Views(one, tokenizer, tokenizer) for name, one in recipe.by_teacher.items()}
        found: list[ToScore] = looks(to_table(rows), count, recipe, views, bounds)
        assert [one.example.row for one in found] == list(range(len(found)))
        assert all(tokenizer.decode(one.example.student_ids) == "x" for one in found)
        assert {one.example.teacher for one in found} <= set(recipe.by_teacher)
        return {
            (one.row, one.trajectory, one.view): (
                tokenizer.decode(one.example.teacher_ids),
                tokenizer.decode(one.example.response_ids),
            )
            for one in found
        }

    return make


@pytest.fixture
def row(tokenizer):  # noqa: F811
    ids = {word: tokenizer(word, add_special_tokens=False).input_ids for word in ("x", "raw", "refined", "y_star")}

    def make(number: int = 0, cell: tuple[bool | None, bool | None] = (False, True), **columns: Any) -> dict:
        made = judged(number, cell)
        made["y_o"]["ids"] = ids["raw"]
        if made["y_r"]:
            made["y_r"]["ids"] = ids["refined"]
        fixed = {"problem_id": "p", "problem": "x", "answer": "1", "reference": "y_star", "epoch": 0, "sample_index": 0}
        return made | fixed | {"step": 0, "seed": 1, "student_prompt_ids": ids["x"]} | columns

    return make


@pytest.mark.parametrize("trained", ["y_r", "y_o"])
@pytest.mark.parametrize("view", ["refine", "vanilla"])
def test_both_trajectories_are_scored_under_both_views_whatever_trains(look, row, trained, view):
    found = look([row()], teacher={"view": view}, train={"trajectory": trained})
    words = {"refine": "x known y_star tried raw", "vanilla": "x known y_star"}
    responses = {"y_o": "raw", "y_r": "refined"}
    assert found == {(0, y, v): (words[v], responses[y]) for y, v in product(responses, words)}


def test_a_teacher_that_is_another_model_sees_no_reference(look, row):
    found = look([row()], teacher={"mode": "opd", "path": "another"})
    assert {words for words, _ in found.values()} == {"x tried raw", "x"}


def test_the_refine_view_is_the_very_prompt_that_y_r_was_sampled_from(look, row, tokenizer):  # noqa: F811
    sampled_from = tokenizer("tried x known", add_special_tokens=False).input_ids
    found = look([row(refine_prompt_ids=sampled_from)])
    assert found[0, "y_o", "refine"][0] == found[0, "y_r", "refine"][0] == "tried x known"
    assert found[0, "y_r", "vanilla"][0] == "x known y_star"


def test_what_was_not_refined_is_scored_on_its_attempt_alone(look, row):
    assert list(look([row(0, NO_R)])) == [(0, "y_o", "refine"), (0, "y_o", "vanilla")]
    assert look([row(0, (None, None), y_o=None)]) == {}


def test_a_prompt_that_leaves_no_room_for_the_response_is_cut_by_the_paper_s_rule(look, row, tokenizer):  # noqa: F811
    """The tail of y_o, then that of y*; problem and instructions never."""
    long = row(reference="y_star y_star", refine_prompt_ids=[9] * 9)
    [raw] = tokenizer("raw", add_special_tokens=False).input_ids
    long["y_o"]["ids"] = [raw] * 4
    for positions, seen in ((12, "x known y_star y_star tried raw raw raw"), (8, "x known y_star tried"), (6, None)):
        found = look([long], bounds=Bounds(1000, {ONLY: positions}))
        assert found.get((0, "y_o", "refine"), (None,))[0] == seen
    assert look([long], bounds=Bounds(4, {ONLY: 99})).keys() == {(0, "y_r", "refine"), (0, "y_r", "vanilla")}


def test_a_token_that_one_side_does_not_have_is_not_scored(look, row, tokenizer):  # noqa: F811
    [refined] = tokenizer("refined", add_special_tokens=False).input_ids
    found = look([row()], bounds=Bounds(1000, {ONLY: 1000}, vocabulary=refined))
    assert {y for _, y, _ in found} == {"y_o"}


def test_of_several_teachers_each_scores_its_own_rows_in_its_own_views(look, row):
    tree = {"teachers": {"strong": {"mode": "opd", "path": "another"}, "own": {}}, "data": {"teacher_column": "t"}}
    bounds = Bounds(1000, {"strong": 1000, "own": 1000})
    found = look([row(0, teacher="own"), row(1, teacher="strong")], bounds=bounds, **tree)
    assert found[0, "y_r", "vanilla"][0] == "x known y_star" and found[1, "y_r", "vanilla"][0] == "x"
