import difflib
from collections import Counter

import numpy as np
import pytest
from made_steps import response, row, step_table

from trd_ray.diagnostics.kept_tokens import common_tokens, edits, kept_share
from trd_ray.diagnostics.repetition import repeated_shares
from trd_ray.diagnostics.step_rows import Lists, StepRows
from trd_ray.stream.edits import edited_share


def by_the_table(a: np.ndarray, b: np.ndarray) -> int:
    """The longest common subsequence by its definition: a table of numbers."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 1000])
def test_common_tokens_are_a_longest_common_subsequence(vocabulary):
    rng = np.random.default_rng(vocabulary)
    for _ in range(40):
        a, b = (rng.integers(0, vocabulary, rng.integers(0, 90)) for _ in range(2))
        assert common_tokens(a, b) == by_the_table(a, b)


def test_a_few_edits_keep_what_difflib_keeps():
    rng = np.random.default_rng(0)
    for _ in range(20):
        y_o = rng.permutation(300)  # tokens that come once have one best alignment
        y_r = np.delete(y_o, rng.choice(300, 20, replace=False))
        y_r[rng.choice(len(y_r), 10, replace=False)] += 1000
        blocks = difflib.SequenceMatcher(None, y_o.tolist(), y_r.tolist(), autojunk=False).get_matching_blocks()
        assert common_tokens(y_o, y_r) == sum(block.size for block in blocks) == 270


def test_to_leave_out_keeps_little_and_to_add_keeps_everything():
    y_o = np.arange(10)
    assert kept_share(y_o, y_o[:2]) == 0.2 and kept_share(y_o, np.arange(40)) == 1.0
    assert kept_share(y_o, y_o) == 1.0 and kept_share(y_o, np.zeros(0, int)) == 0.0
    assert kept_share(np.zeros(0, int), y_o) is None


def test_a_step_is_compared_row_by_row_until_the_pairs_are_used_up():
    ids = [np.arange(10), np.arange(5, 15), np.arange(10)]
    table = step_table(
        row(0, y_o=response(ids[0]), y_r=response(ids[1])),
        row(1, y_o=response(ids[0]), y_r=None),
        row(2, y_o=response(ids[0]), y_r=response(ids[2]), fault="not judged"),
        row(3, y_o=response(ids[0]), y_r=response(ids[1][:0]), refine_edited_share=0.75),
        row(4, y_o=response([]), y_r=response(ids[1])),
        row(5, y_o=response(ids[0]), y_r=response(ids[2])),
    )
    edited, kept = edits(StepRows(table), most_pairs=10_000)
    expected = edited_share(ids[0], ids[1])
    assert edited.tolist() == pytest.approx([expected, np.nan, np.nan, 0.75, 1.0, 0.0], nan_ok=True)
    assert kept.tolist() == pytest.approx([0.5, np.nan, np.nan, 0.0, np.nan, 1.0], nan_ok=True)
    edited, kept = edits(StepRows(table), most_pairs=99)  # the first row has 100
    assert np.isnan(kept).tolist() == [False, True, True, True, True, True]
    assert edited[3] == 0.75  # what the row knew already costs nothing


def naive_repetition(ids: list[int]) -> float:
    runs = Counter(tuple(ids[i : i + 4]) for i in range(len(ids) - 3))
    return 1 - len(runs) / sum(runs.values()) if runs else np.nan


@pytest.mark.parametrize("vocabulary", [1, 2, 6, 100_000])
def test_repetition_is_counted_within_a_response_as_a_counter_of_its_runs_does(vocabulary):
    rng = np.random.default_rng(vocabulary)
    responses = [rng.integers(0, vocabulary, size).tolist() for size in (0, 3, 4, 5, 300, 0, 40, 2, 1000)]
    rows = StepRows(step_table(*(row(i, y_o=response(ids)) for i, ids in enumerate(responses))))
    assert repeated_shares(rows.y_o).tolist() == pytest.approx(list(map(naive_repetition, responses)), nan_ok=True)


def test_the_order_of_tokens_counts_in_a_run_and_a_loop_repeats_nearly_all():
    rows = StepRows(step_table(row(0, y_o=response([1, 2, 3, 4, 4, 3, 2, 1])), row(1, y_o=response([7] * 103))))
    assert repeated_shares(rows.y_o).tolist() == [0.0, 0.99]


def test_without_responses_nothing_repeats():
    rows = StepRows(step_table(row(0)))
    assert np.isnan(repeated_shares(rows.y_o)).all() and np.isnan(repeated_shares(Lists.of(None, 2))).all()
