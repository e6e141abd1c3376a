import math

import numpy as np
import pytest
from made_steps import random_rows, response, row, scored, step_table

from trd_ray.diagnostics.kept_tokens import edits
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.support import Support, means, support_of, unique_answers


def measured(*rows: dict) -> dict[str, float]:
    step = StepRows(step_table(*rows))
    return means(support_of(step, edits(step, 10**9))[0])


BY_HAND = [
    row(
        0,
        y_o=response([1, 2, 3, 4], logprobs=[-1.0, -0.5, -0.25, -0.25]),
        y_r=response([1, 2, 9, 4], text="As in the reference solution, 4."),
        scored=[scored("y_r", "refine", True, kl=[0.0] * 4, student_nll=[1.0, 1.0, 3.0, 1.0])],
    ),
    row(
        1,
        y_o=response([7] * 8, logprobs=[-2.0] * 8),
        y_r=response([7, 7]),
        scored=[
            scored("y_r", "vanilla", kl=[0.0] * 2, student_nll=[0.5, 0.5]),
            scored("y_r", "refine", kl=[0.0] * 2, student_nll=[9.0, 9.0]),  # the student saw the same: it counts once
        ],
    ),
    row(2, y_o=response([5, 6], logprobs=[-1.0, -1.0]), y_r=None),
    row(3, y_o=response([1] * 50, logprobs=[-9.0] * 50), y_r=response([1], text="the previous attempt"), fault="dead"),
]


def test_every_number_of_a_step_counted_by_hand():
    assert measured(*BY_HAND) == pytest.approx(
        {
            "y_o_nll": (2 + 16 + 2) / 14,
            "y_r_nll": (6 + 1) / 6,
            "edited_share": (1 / 4 + 6 / 8) / 2,
            "kept_share": (3 / 4 + 2 / 8) / 2,
            "leaks": 1 / 2,
            "y_o_repetition": (0 + 4 / 5) / 2,
            "y_r_repetition": 0.0,
        }
    )


def test_what_nearest_asked_the_sampler_for_stands_in_where_the_learner_scored_no_refinement():
    rows = [
        row(0, y_r=response([1] * 3), refine_student_logprob=-0.5),
        row(1, y_r=response([1]), refine_student_logprob=-2.5),
        row(2, y_r=response([1])),
    ]
    assert measured(*rows)["y_r_nll"] == pytest.approx((3 * 0.5 + 2.5) / 4)


def test_what_is_not_known_is_not_said():
    assert measured(row(0), row(1, y_o=response([]))) == {}
    assert "y_o_nll" not in measured(row(0, y_o=response([1, 2], logprobs=None)))
    no_texts = StepRows(step_table(row(0, y_r=response([1]))).select(["row", "step", "scored"]))
    assert support_of(no_texts, edits(no_texts, 1)) == ({}, [])
    odd = measured(row(0, y_o=response([1, 2], logprobs=[-1.0, -math.inf])))
    assert odd["y_o_nll"] == 1.0


def test_unique_answers_are_of_the_rollouts_of_a_problem_in_an_epoch():
    problems = ["a", "a", "a", "b", "b", "c", "a", "d", "d"]
    epochs = [0, 0, 0, 0, 0, 0, 1, 0, 0]
    answers = ["4", " 4 ", "5", "7", "7", "1", "9", "", None]
    total, count = unique_answers(problems, epochs, answers)
    assert (total, count) == (pytest.approx(2 / 3 + 1 / 2), 2)
    assert unique_answers([], [], []) == (0.0, 0.0)


def test_over_steps_every_token_row_and_refinement_counts_once_and_a_leak_is_shown():
    rng = np.random.default_rng(0)
    steps = {1: random_rows(rng, 5, step=1, first=10), 2: random_rows(rng, 9, step=2, first=20), 3: BY_HAND}
    support = Support()
    for number, rows in steps.items():
        step = StepRows(step_table(*rows))
        support.add(number, step, edits(step, 10**9))
    found = support.found({1: {"student_entropy": 0.5, "teacher_entropy": None}})
    assert found["steps"] == [1, 2, 3]
    assert found["all"] == pytest.approx(measured(*[one for rows in steps.values() for one in rows]))
    for place, rows in enumerate(steps.values()):
        assert {name: v[place] for name, v in found["per_step"].items() if name in found["all"]} == pytest.approx(
            measured(*rows)
        )
    assert found["per_step"]["student_entropy"] == [0.5, None, None] and "teacher_entropy" not in found["per_step"]
    [told] = found["leaked"]
    assert (told["pattern"], told["rows"], told["row"]) == ("reference solution", 1, 0)
    assert "As in the reference solution, 4." in told["text"]
    assert Support().found({}) is None
