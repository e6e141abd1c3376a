import hashlib
import struct

from trd_ray.lineage import START, advance, of_ledger, rows_that_train
from trd_ray.rows import to_table


def row(number: int, step: int, train: bool | None = True) -> dict:
    fixed = {
        "problem_id": "p",
        "problem": "?",
        "answer": "5",
        "reference": "",
        "epoch": 0,
        "sample_index": 0,
        "seed": 0,
    }
    return fixed | {"row": number, "step": step, "train": train}


def test_the_value_is_a_chain_of_sha256_over_step_and_row():
    first = hashlib.sha256(hashlib.sha256().digest() + struct.pack("<q", 1) + struct.pack("<4q", 1, 7, 1, 8))
    second = hashlib.sha256(first.digest() + struct.pack("<q", 2))
    assert advance(START, 1, [7, 8]) == first.hexdigest()
    assert advance(first.hexdigest(), 2, []) == second.hexdigest()


def test_a_row_that_is_lost_trained_twice_or_moved_to_another_step_changes_it():
    values = {
        advance(advance(START, 1, one), 2, two)
        for one, two in [([1, 2], [3, 4]), ([1], [3, 4]), ([1, 2], [2, 3, 4]), ([1, 2, 3], [4]), ([2, 1], [3, 4])]
    }
    assert len(values) == 5


def test_the_ledger_gives_the_same_value_in_the_order_of_steps(tmp_path):
    import pyarrow.parquet as pq

    steps = {2: [row(5, 2), row(4, 2, train=False)], 10: [row(6, 10, train=None)], 1: [row(1, 1), row(0, 1)]}
    for step, rows in steps.items():
        pq.write_table(to_table(rows), tmp_path / f"step-{step:06d}.parquet")
    files = list(tmp_path.iterdir())
    assert of_ledger(files, until=2) == advance(advance(START, 1, [1, 0]), 2, [5])
    assert of_ledger(files) == advance(of_ledger(files, until=2), 10, [])
    assert rows_that_train(to_table(steps[2])) == [5]
