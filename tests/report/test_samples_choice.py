from collections import Counter

import pytest

from trd_ray.report.samples.choice import CELLS, Light, cell_of, in_order, said, spread


def rows_of(steps: int, of_step: int) -> list[Light]:
    made = []
    for number in range(steps * of_step):
        kl = None if number % 7 == 0 else float(number * 37 % 101)
        made.append(Light(number, 1 + number // of_step, CELLS[number * number % 4], 100, kl))
    return made


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 1000])
def test_spread_keeps_everything_once(n):
    assert sorted(spread(range(n))) == list(range(n))


def test_every_beginning_of_a_spread_order_leaves_no_wide_gap():
    order = spread(range(1000))
    for n in (3, 9, 33, 129):
        begun = sorted(order[:n])
        gaps = [b - a for a, b in zip(begun, begun[1:], strict=False)]
        assert begun[0] == 0 and begun[-1] == 999 and max(gaps) <= 2 * 999 / (n - 1) + 1


def test_the_order_holds_every_row_once_and_is_the_same_each_time():
    rows = rows_of(20, 16)
    order = in_order(rows)
    assert order == in_order(rows)
    assert sorted(row.row for row, _ in order) == [row.row for row in rows]


def test_wherever_the_order_is_cut_each_reason_has_its_share():
    rows = rows_of(60, 32)
    order = in_order(rows)
    for n in (50, 100):
        why = Counter(name for _, name in order[:n])
        assert why == {"cell": 2 * n // 5, "dense": n // 5, "highest": n // 5, "even": n // 5}


def test_rows_of_the_highest_kl_are_those_of_the_highest_kl():
    rows = rows_of(60, 32)
    taken = in_order(rows)[:200]
    highest = [row.kl for row, why in taken if why == "highest"]
    others = [row.kl for row in rows if row.kl is not None and row.row not in {one.row for one, _ in taken}]
    assert min(filter(None, highest)) >= max(others)


def test_the_first_middle_and_last_step_come_dense():
    dense = {row.step for row, why in in_order(rows_of(61, 32))[:300] if why == "dense"}
    assert dense == {1, 31, 61}


def test_the_sentence_counts_what_is_there():
    rows = rows_of(60, 32)
    taken = in_order(rows)[:200]
    whole = [
        step
        for step in range(1, 61)
        if {r.cell for r in rows if r.step == step} == {r.cell for r, _ in taken if r.step == step}
    ]
    sentence = said(taken, rows)
    assert sentence.startswith("200 of 1,920 rows are shown, as many as this page has room for: 80 that stand for ")
    assert f"Of {len(whole)} of 60 steps every ledger cell is here." in sentence and 10 < len(whole) < 60
    assert said(in_order(rows), rows) == "All 1,920 rows are shown."


def test_the_cell_of_a_row_is_the_ledgers():
    assert cell_of(False, True, None) == "fail_pass"
    assert cell_of(True, None, None) == "pass"  # nothing was refined
    assert cell_of(None, True, None) == "open"  # a person has yet to judge y_o
    assert cell_of(True, True, "prompt too long") == "fault"
