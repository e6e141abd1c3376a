"""Of a problem's rollouts one trains: the shortest that passes, else the first."""

import pytest

from trd_ray.record.ledger import row_metrics
from trd_ray.rows import light, to_table
from trd_ray.stream.examples import examples_of
from trd_ray.stream.siblings import NOT_BEST, one_of_each


def step(*rollouts: tuple[str, bool | None, int]):
    """(problem, verdict, tokens) of each row; without a verdict it has a fault."""
    rows = []
    for number, (problem, passed, tokens) in enumerate(rollouts):
        trains = passed is not None
        rows.append(
            {
                "problem_id": problem, "problem": "?", "answer": "1", "reference": "", "row": number, "step": 0,
                "epoch": 0, "sample_index": 0, "seed": number, "y_o": {"ids": [1] * tokens, "passed": passed},
                "trajectory": "y_o", "train": trains, "dropped_because": "" if trains else "bad row",
                "student_ids": [1], "teacher_ids": [2], "response_ids": [1] * tokens,
            }
        )  # fmt: skip
    return to_table(rows)


@pytest.mark.parametrize(
    ("rollouts", "trains"),
    [
        ([("a", False, 3), ("a", True, 9)], [1]),  # the one that passes
        ([("a", True, 9), ("a", True, 4), ("a", False, 1)], [1]),  # the shortest of those
        ([("a", True, 4), ("a", True, 4)], [0]),
        ([("a", False, 9), ("a", False, 1)], [0]),  # none: the first
        ([("a", None, 2), ("a", False, 9)], [1]),  # the first of those that could train
        ([("a", None, 2), ("a", None, 9)], []),
        ([("a", False, 1), ("b", True, 5), ("a", True, 7), ("b", True, 2)], [2, 3]),
    ],
)
def test_one_row_of_each_problem_trains(rollouts, trains):
    table = one_of_each(step(*rollouts))
    assert [e.row for e in examples_of(table)] == trains
    metrics = row_metrics(light(table))
    lost = sum(passed is not None for _, passed, _ in rollouts) - len(trains)
    assert metrics["trained_rows"] == len(trains) and metrics.get(f"dropped/{NOT_BEST}", 0) == lost
    assert metrics["rollouts"] == len(rollouts), "what was sampled is counted whole"
