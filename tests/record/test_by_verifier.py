"""A step says what each of several verifiers gave, from a verdict to the summary."""

from trd_ray import rows as schema
from trd_ray.record.by_verifier import VERIFIERS, verifier_table
from trd_ray.record.ledger import facts_of_rows, facts_of_run, row_metrics
from trd_ray.record.metrics import metric_names
from trd_ray.stream.stages import record_verdict
from trd_ray.verify import Verdict


def row(number: int, y_o: dict[str, float], y_r: dict[str, float] | None = None, **columns) -> dict:
    """A row whose trajectories were judged with these parts."""
    made: dict = {"problem_id": f"p{number}", "problem": "?", "answer": "5", "reference": "", "row": number, "step": 0}
    made |= {"epoch": 0, "sample_index": 0, "seed": number, "train": True, "dropped_because": ""} | columns
    for y, parts in (("y_o", y_o), ("y_r", y_r)):
        if parts is not None:
            made[y] = {"ids": [1] * 4}
            record_verdict(made, y, Verdict(True, 1.0, "5", "", 0.1, parts=parts), 100.0)
    return made


JUDGED = [
    row(0, {"right": 1.0, "form": 0.0}, {"right": 1.0, "form": 1.0}),
    row(1, {"right": 0.0, "form": 0.5}, {"right": 0.0}),  # one gave no score
    row(2, {"right": 0.5, "form": 1.0}),
    row(3, {"right": 9.0}, {"right": 9.0}, fault="y_r: not judged"),
]


def test_the_mean_of_each_counted_by_hand():
    table = schema.to_table(JUDGED)
    found = {name: n for name, n in row_metrics(schema.light(table)).items() if name.startswith(VERIFIERS)}
    assert found == {
        "verifiers/form/y_o_score": 0.5, "verifiers/form/y_r_score": 1.0,
        "verifiers/right/y_o_score": 0.5, "verifiers/right/y_r_score": 0.5,
    }  # fmt: skip
    assert found.keys() <= set(metric_names(verifiers=["right", "form"]))


def test_the_summary_has_a_line_for_each_also_from_the_files_of_a_run(tmp_path):
    import pyarrow.parquet as pq

    table = schema.to_table(JUDGED)
    pq.write_table(table, tmp_path / "step-000001.parquet")
    stored = facts_of_run(schema.RowFiles([tmp_path / "step-000001.parquet"]))
    for facts in (facts_of_rows(schema.light(table)), stored):
        text = verifier_table(facts)
        assert "| form | 0.500 | 3 | 1.000 | 1 |" in text and "| right | 0.500 | 3 | 0.500 | 2 |" in text


def test_where_one_verifier_judges_nothing_is_said():
    alone = [row(0, {}), row(1, {}, {})]
    light = schema.light(schema.to_table(alone))
    assert light[0]["y_o"]["parts"] is None
    assert not [name for name in row_metrics(light) if name.startswith(VERIFIERS)]
    assert verifier_table(facts_of_rows(light)) == ""
