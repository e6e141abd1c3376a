"""Values of tokens on their way into rows: rounded, put together, and stored without an object for any of them."""

import math
import tracemalloc

import numpy as np
import pytest

from trd_ray.rows import DIAGNOSED, SCORED, to_table, upgrade
from trd_ray.token_values import (
    FIELDS,
    METRICS,
    NONE,
    ScoredTrajectory,
    TokenValues,
    column,
    perplexity,
    together,
    token_metrics,
    with_column,
)


def values(*lengths: int, first: int = 0) -> TokenValues:
    """Responses of these lengths, whose keys count from `first`; every number is another one."""
    total = len(FIELDS) * sum(lengths)
    numbers = (np.arange(total) % 2000 + 10 * first).reshape(len(FIELDS), -1)
    return TokenValues(np.arange(first, first + len(lengths)), np.array(lengths, np.int64), numbers.astype(np.float16))


def test_the_fields_are_the_lists_of_a_stored_element_in_their_order():
    assert [field.name for field in SCORED] == ["trajectory", "view", "trained", *FIELDS]


def test_parts_of_ranks_are_one_and_each_response_is_found_by_its_key():
    one, other = values(3, 0, 2, first=0), values(4, first=7)
    found = together([one, NONE, other]).by_key()
    assert {key: found[key].shape for key in found} == {0: (4, 3), 1: (4, 0), 2: (4, 2), 7: (4, 4)}
    assert np.array_equal(found[2], one.values_FN[:, 3:]) and np.array_equal(found[7], other.values_FN)
    assert together([]).by_key() == {} and together([]).values_FN.dtype == np.float16


def test_percentiles_count_every_token_alike_and_are_absent_without_any():
    kl = np.random.default_rng(0).gamma(0.3, 2.0, 5000)
    found = token_metrics(np.stack([kl, *[np.zeros(5000)] * 3]).astype(np.float16))
    assert list(found) == list(METRICS)
    for name, percent in zip(METRICS, (50, 95, 99), strict=True):
        assert found[name] == pytest.approx(np.percentile(kl, percent), rel=1e-3)
    assert token_metrics(NONE.values_FN) == {}
    assert math.isnan(token_metrics(np.full((4, 3), np.nan, np.float16))["kl/p95"])


def test_a_perplexity_beyond_a_float_is_infinite():
    assert perplexity(math.log(12.5)) == pytest.approx(12.5)
    assert perplexity(1e6) == math.inf and math.isnan(perplexity(math.nan))


def plain(number: int) -> dict:
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    return fixed | {"row": number, "step": 1}


def test_a_column_holds_the_elements_of_each_row_and_null_for_a_row_without_any():
    one = ScoredTrajectory("y_r", "refine", True, values(3).values_FN)
    other = ScoredTrajectory("y_o", "vanilla", False, values(2).values_FN)
    empty = ScoredTrajectory("y_o", "refine", False, NONE.values_FN)
    table = with_column(to_table([plain(i) for i in range(4)]), [[], [one, other], [], [empty]])
    assert table.schema.field("scored") == DIAGNOSED[0] and upgrade(table) == table
    rows = table["scored"].to_pylist()
    assert rows[0] is None and rows[2] is None
    for scored, stored in zip((one, other, empty), [*rows[1], *rows[3]], strict=True):
        assert (stored["trajectory"], stored["view"], stored["trained"]) == scored[:3]
        assert [stored[name] for name in FIELDS] == scored.values_FN.tolist()
    assert column([[], []]).to_pylist() == [None, None] and len(column([])) == 0


def test_what_another_run_has_found_in_the_rows_of_a_corpus_is_not_taken_for_this_one_s():
    old = with_column(to_table([plain(0)]), [[ScoredTrajectory("y_r", "refine", True, values(3).values_FN)]])
    assert with_column(old, [[]])["scored"].to_pylist() == [None]


def test_no_token_becomes_an_object():
    """Objects for these million numbers would take 30 MB."""
    found = values(*[4096] * 64).by_key()
    scored = [[ScoredTrajectory("y_r", "refine", True, found[i])] for i in range(64)]
    tracemalloc.start()
    made = column(scored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == 64 and peak < 6_000_000
