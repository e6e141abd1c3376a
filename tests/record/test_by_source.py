"""A step says of each source of problems what it says of all rows."""

import pytest

from trd_ray import rows as schema
from trd_ray.record.by_source import SOURCE, names_of, source_table
from trd_ray.record.ledger import facts_of_rows, row_metrics
from trd_ray.record.metrics import metric_names, require_metric


def row(number: int, source: str | None, y_o: bool, y_r: bool | None, train: bool = True, **columns) -> dict:
    plain = {"problem_id": f"p{number}", "problem": "?", "answer": "5", "reference": "", "row": number, "step": 0}
    order = {"epoch": 0, "sample_index": 0, "seed": number, "train": train, "dropped_because": "", "source": source}
    made = {"y_o": {"ids": [1] * 4, "passed": y_o}, "y_r": None if y_r is None else {"ids": [1] * 2, "passed": y_r}}
    return plain | order | made | columns


def lit(rows: list[dict]) -> list[dict]:
    return schema.light(schema.to_table(rows))


MIXED = [
    row(0, "maths", True, True),
    row(1, "maths", False, True),
    row(2, "code", False, False, train=False),
    row(3, "code", False, True, fault="y_r: not judged"),
]


def test_every_number_of_each_source_counted_by_hand():
    found = {name.removeprefix(SOURCE): n for name, n in row_metrics(lit(MIXED)).items() if name.startswith(SOURCE)}
    assert found == {
        "maths/rows": 2, "maths/trained_rows": 2, "maths/pass_rate": 0.5, "maths/refined_pass_rate": 1.0,
        "maths/tokens_mean": 4, "maths/refined_tokens_mean": 2,
        "code/rows": 2, "code/trained_rows": 1, "code/pass_rate": 0.0, "code/refined_pass_rate": 0.0,
        "code/tokens_mean": 4, "code/refined_tokens_mean": 2,
    }  # fmt: skip
    assert set(row_metrics(lit(MIXED))) <= set(metric_names(["maths", "code"])) | {"trained_rows"}


def test_with_one_source_nothing_is_said_of_it_and_without_refinements_nothing_of_these():
    alone = [row(0, None, True, True), row(1, None, False, True)]
    assert not [name for name in row_metrics(lit(alone)) if name.startswith(SOURCE)]
    raw = row_metrics(lit([row(0, "maths", True, None)]))
    assert [name for name in raw if name.startswith(SOURCE)] == [
        f"{SOURCE}maths/{name}" for name in ("rows", "trained_rows", "pass_rate", "tokens_mean")
    ]


def test_a_checkpoint_may_be_best_by_a_source_of_its_run_and_by_no_other():
    require_metric("source/maths/pass_rate", metric_names(["maths"]))
    assert set(names_of(["maths"])) <= set(metric_names(["maths"]))
    with pytest.raises(Exception, match="did you mean source/maths/pass_rate"):
        require_metric("source/math/pass_rate", metric_names(["maths"]))


def test_the_summary_has_a_line_for_each_source():
    text = source_table(facts_of_rows(lit(MIXED)))
    assert "| maths | 2 (50.0%) | 2 | 50.0% | 100.0% | 4.0 | 2.0 |" in text
    assert "| code | 2 (50.0%) | 1 | 0.0% | 0.0% | 4.0 | 2.0 |" in text
    assert source_table(facts_of_rows(lit([row(0, None, True, True)]))) == ""
