"""What was found at the tokens of a step is kept beside its rows, and changes nothing else of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trd_ray import config, lineage
from trd_ray.config import ONLY
from trd_ray.distill.batches import Example
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import light, to_table
from trd_ray.stream import diagnosed
from trd_ray.stream.diagnosed import Bounds, ToScore
from trd_ray.token_values import FIELDS, NONE, TokenValues
from trd_ray.train import diagnosing
from trd_ray.train.diagnosing import Diagnosing

BOUNDS = Bounds(100, {ONLY: 100})


def of(**tree: Any) -> Diagnosing:
    return Diagnosing(config.from_tree(tree), {}, BOUNDS)


def rows(*trained: str | None) -> list[dict[str, Any]]:
    fixed = {"problem_id": "p", "problem": "?", "answer": "", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    return [
        fixed
        | {"row": 40 + i, "step": 3, "train": y is not None, "trajectory": y or "y_r", "response_ids": [1] * (i + 1)}
        for i, y in enumerate(trained)
    ]


def found(table: Any) -> TokenValues:
    """As a learner tells it: each trained row's tokens, in an order of its own."""
    of_rows = [r for r in reversed(table.to_pylist()) if r["train"]]
    lengths = np.array([len(r["response_ids"]) for r in of_rows], np.int64)
    values = np.repeat([r["row"] for r in of_rows], lengths) + np.arange(len(FIELDS))[:, None] / 4
    return TokenValues(np.array([r["row"] for r in of_rows]), lengths, values.astype(np.float16))


def test_the_first_step_is_looked_at_and_then_every_so_many_steps():
    assert [step for step in range(9) if of(diagnostics={"rows": 2, "every_steps": 4}).due(step)] == [0, 4, 8]
    assert not any(of().due(step) for step in range(20))


def test_each_trained_row_has_its_own_tokens_first_and_a_dropped_row_has_null():
    table = to_table(rows("y_r", None, "y_r", "y_r"))
    kept = of().kept(table, found(table), {})
    scored = kept["scored"].to_pylist()
    assert scored[1] is None and [len(one) for one in scored if one] == [1, 1, 1]
    for row, one in zip(kept.to_pylist(), scored, strict=True):
        if one:
            assert (one[0]["trajectory"], one[0]["view"], one[0]["trained"]) == ("y_r", "refine", True)
            expected = [[row["row"] + i / 4] * len(row["response_ids"]) for i in range(len(FIELDS))]
            assert [one[0][name] for name in FIELDS] == expected
    assert kept.drop_columns("scored") == table.drop_columns("scored") and light(kept) == light(table)


@pytest.mark.parametrize(
    ("trajectory", "view", "expected"),
    [
        ("y_r", "refine", {"y_r": "refine"}),
        ("y_r", "vanilla", {"y_r": "vanilla"}),
        ("y_o", "vanilla", {"y_o": "vanilla"}),
        ("y_o", "refine", {"y_o": "refine"}),
        ("repair", "refine", {"y_o": "vanilla", "y_r": "refine"}),
        ("mixture", "refine", {"y_o": "vanilla", "y_r": "refine"}),
    ],
)
def test_the_view_that_is_told_is_the_one_that_the_row_trained_under(trajectory, view, expected):
    table = to_table(rows(*expected))
    kept = of(train={"trajectory": trajectory}, teacher={"view": view}).kept(table, found(table), {})
    assert {one["trajectory"]: one["view"] for [one] in kept["scored"].to_pylist()} == expected


def test_without_tokens_and_without_looks_every_row_has_null():
    table = to_table(rows("y_r", "y_r"))
    assert of(diagnostics={"tokens": False}).kept(table, NONE, {})["scored"].to_pylist() == [None, None]


def test_looks_come_after_what_trained_also_in_a_row_that_did_not_train(monkeypatch):
    asked = [
        ToScore(41, "y_o", "refine", Example(0, [1], [2], [3, 4])),
        ToScore(41, "y_o", "vanilla", Example(1, [1], [2], [3, 4])),
        ToScore(42, "y_r", "vanilla", Example(2, [1], [2], [3])),
    ]
    monkeypatch.setattr(diagnosing, "looks", lambda *_: asked)

    def score(examples: list[Example]) -> TokenValues:
        assert [e.row for e in examples] == [0, 1, 2]
        shuffled = np.array([2, 0, 1])  # ranks answer in their own order
        lengths = np.array([1, 2, 2])
        return TokenValues(shuffled, lengths, np.tile(np.repeat(shuffled, lengths), (4, 1)).astype(np.float16))

    made, table = of(diagnostics={"rows": 2}), to_table(rows("y_r", None, "y_r"))
    scored = made.kept(table, found(table), made.look(table, score))["scored"].to_pylist()
    told = [[(one["trajectory"], one["view"], one["trained"], one["kl"]) for one in row] for row in scored]
    assert told[0] == [("y_r", "refine", True, [40])]
    assert told[1] == [("y_o", "refine", False, [0, 0]), ("y_o", "vanilla", False, [1, 1])]
    assert told[2] == [("y_r", "refine", True, [42] * 3), ("y_r", "vanilla", False, [2])]


def test_what_is_written_is_read_back_and_the_lineage_of_the_weights_is_the_same(tmp_path: Path):
    table = to_table(rows("y_r", None, "y_r"))
    kept = of().kept(table, found(table), {})
    digests = []
    for name, one in (("plain", table), ("kept", kept)):
        directory = RunDirectory.create(tmp_path / name, config.from_tree({"name": "r"}))
        directory.write_rows(4, one)
        assert directory.read_step(4)["scored"].to_pylist() == one["scored"].to_pylist()
        digests.append(lineage.of_ledger((directory.path / "rows").glob("*.parquet")))
        directory.release()
    assert digests[0] == digests[1] and lineage.rows_that_train(table) == lineage.rows_that_train(kept)


def test_cells_name_the_verdicts_of_both_trajectories():
    assert set(diagnosed.CELLS) == {(o, r) for o in (True, False) for r in (True, False)}
