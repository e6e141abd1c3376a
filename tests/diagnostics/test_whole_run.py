"""One pass over a directory's files gives what the parts give, whatever the directory is."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_run import made_run
from made_steps import response, row

from trd_ray.diagnostics.departure import Departures
from trd_ray.diagnostics.kept_tokens import edits
from trd_ray.diagnostics.position import Position
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.support import means, support_of
from trd_ray.diagnostics.token_signal import Signal
from trd_ray.diagnostics.whole import PARTS, of_run
from trd_ray.errors import UserError
from trd_ray.rows import METADATA, ROW, TRAJECTORY, to_table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "run"
    return place, made_run(place)


def of_steps(rows: list[dict], *steps: int) -> StepRows:
    return StepRows(to_table([one for one in rows if one["step"] in steps]))


def test_everything_of_a_run_is_there_and_plain(run):
    place, rows = run
    found = of_run(place)
    assert set(found) == {"about", *PARTS}
    assert found["about"] == {"rows": 24, "faults": 0, "from": "rows", "steps": [1, 2, 3], "scored_rows": 24}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["signal"]["kinds"]) == {"trained", "y_o_refine", "y_o_vanilla", "y_r_refine", "y_r_vanilla"}
    assert found["signal"]["paired"]["vanilla"]["rows"] == 12
    assert {"number", "operator", "latex", "end"} <= set(found["classes"]["trained"])
    assert found["classes"]["y_o_refine"]["onset"]["count"] > 0
    assert found["support"]["per_step"]["student_entropy"] == [0.5, 0.25, 0.5 / 3]
    assert found["buckets"]["evaluation"][""][0]["columns"][1]["name"] == "trained"
    assert [one["subset"] for one in found["subsets"]] == ["all", "failed", "repaired", "passed"]


def test_each_part_is_what_its_own_function_says_of_the_same_rows(run):
    place, rows = run
    found = of_run(place)
    signal, position, departures = Signal(), Position(), Departures()
    for step in (1, 2, 3):
        its = of_steps(rows, step)
        signal.add(step, its.scored)
        position.add(its.scored)
        departures.add(its.scored, its.passed["y_o"])
    assert found["signal"] == signal.found()
    assert found["position"] == position.found() and found["departure"] == departures.found()
    every = of_steps(rows, 1, 2, 3)
    assert found["support"]["all"] == pytest.approx(means(support_of(every, edits(every, 10**9))[0]))
    lengths = [len(one["y_o"]["ids"]) for one in rows]
    assert found["lengths"]["all"]["raw"]["mean"] == pytest.approx(np.mean(lengths))
    ends = [len(one["y_r"]["ids"]) - 1 for one in rows]  # a reference is y_r without its end token
    assert found["lengths"]["all"]["reference"]["p50"] == np.median(ends)


@pytest.mark.parametrize(
    ("steps", "those"), [((2, None), (2, 3)), ((None, 1), (1,)), ((2, 2), (2,)), ((None, None), (1, 2, 3))]
)
def test_steps_are_counted_as_in_the_files_with_both_ends(run, steps, those):
    place, rows = run
    found = of_run(place, only=("signal", "subsets"), steps=steps)
    assert found["about"]["steps"] == list(those) and set(found) == {"about", "signal", "subsets"}
    assert found["about"]["rows"] == 8 * len(those)


def test_a_source_is_its_rows_alone(run):
    place, rows = run
    its = [one for one in rows if one["source"] == "maths"]
    found = of_run(place, only=("lengths",), source="maths")
    assert found["about"]["rows"] == len(its) == found["lengths"]["all"]["raw"]["rows"] < len(rows)
    assert found["lengths"]["all"]["raw"]["mean"] == pytest.approx(np.mean([len(one["y_o"]["ids"]) for one in its]))


def test_what_no_row_is_of_is_refused_with_what_there_is(run):
    place, _ = run
    with pytest.raises(UserError, match=r"is of source 'physics': it has steps 1 to 3, and sources logic, maths"):
        of_run(place, source="physics")
    with pytest.raises(UserError, match=r"is of steps 9:: it has steps 1 to 3"):
        of_run(place, steps=(9, None))


def test_a_run_that_kept_no_tokens_says_what_to_set(tmp_path):
    made_run(tmp_path / "old", scored=False)
    found = of_run(tmp_path / "old")
    assert {"signal", "position", "classes", "departure"} == set(found["missing"])
    assert "diagnostics.tokens=true" in found["missing"]["signal"]
    assert "diagnostics.rows=8" in found["missing"]["departure"]
    assert found["about"]["scored_rows"] == 0 and found["support"]["all"]["kept_share"] > 0.5


def flat(rows: list[dict]) -> pa.Table:
    """As version 3 stored them: a column for each field of y_o and y_r, and no `scored`."""
    fields = [f for f in ROW if f.name not in ("y_o", "y_r", "scored")]
    fields += [pa.field(f"{y}_{f.name}", f.type) for y in ("y_o", "y_r") for f in TRAJECTORY]
    made = [
        {f.name: one.get(f.name) for f in fields}
        | {f"{y}_{f.name}": one[y].get(f.name) for y in ("y_o", "y_r") for f in TRAJECTORY}
        for one in rows
    ]
    return pa.Table.from_pylist(made, schema=pa.schema(fields, metadata={**METADATA, "trd_ray.rows": "3"}))


def test_rows_of_an_older_version_give_the_same_trajectories(run, tmp_path):
    place, rows = run
    (tmp_path / "rows").mkdir()
    shutil.copy(place / "recipe.yaml", tmp_path)
    for step in (1, 2, 3):
        its = [one for one in rows if one["step"] == step]
        pq.write_table(flat(its), tmp_path / "rows" / f"step-00000{step}.parquet")
    old, new = of_run(tmp_path, only=("lengths", "support")), of_run(place, only=("lengths", "support"))
    assert old["lengths"] == new["lengths"]
    assert old["support"]["all"] == {n: v for n, v in new["support"]["all"].items() if n != "y_r_nll"}


def test_an_evaluation_s_samples_are_rows_and_its_benchmarks_are_sources(tmp_path):
    for name, lengths in (("aime", (4, 8)), ("math", (20,))):
        samples = [{"problem_id": f"p{i}", "sample": i, "y_o": response([1] * n, True)} for i, n in enumerate(lengths)]
        fields = [ROW.field("problem_id"), pa.field("sample", pa.int32()), ROW.field("y_o")]
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        table = pa.Table.from_pylist(samples, schema=pa.schema(fields, metadata=METADATA))
        pq.write_table(table, tmp_path / "evaluation" / f"{name}.parquet")
    found = of_run(tmp_path, only=("lengths", "support", "subsets"))
    assert found["about"] == {"rows": 3, "faults": 0, "from": "evaluation", "steps": [1, 2], "scored_rows": 0}
    assert found["lengths"]["all"] == {"raw": found["lengths"]["all"]["raw"]}
    assert "recipe.yaml" in found["missing"]["lengths"] and found["lengths"]["all"]["raw"]["max"] == 20
    assert of_run(tmp_path, only=("lengths",), source="aime")["lengths"]["all"]["raw"]["mean"] == 6.0


def test_the_directory_of_a_comparison_names_its_runs_and_an_empty_one_says_what_it_lacks(run, tmp_path):
    place, _ = run
    with pytest.raises(UserError, match=r"it holds runs: name one of them, such as .*/run"):
        of_run(place.parent)
    with pytest.raises(UserError, match="name the directory of a run, of a corpus or of an evaluation that is done"):
        of_run(tmp_path)


def test_of_a_run_without_a_step_there_is_what_was_evaluated_and_a_word_on_the_rest(run, tmp_path):
    place, _ = run
    begun = tmp_path / "begun"
    shutil.copytree(place, begun)
    for file in (begun / "rows").glob("*"):
        file.unlink()
    found = of_run(begun)
    assert set(found) == {"about", "buckets", "missing"} and set(found["buckets"]) == {"evaluation"}
    assert found["about"]["rows"] == 0 and found["about"]["steps"] == []
    assert set(found["missing"].values()) == {"no step is recorded: look again once the first one is"}


def test_a_damaged_file_is_named_and_a_line_that_a_crash_cut_short_is_left_out(run, tmp_path):
    place, _ = run
    broken = tmp_path / "broken"
    shutil.copytree(place, broken)
    with open(broken / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 4, "student/ent')
    assert of_run(broken, only=("support",))["support"]["steps"] == [1, 2, 3]
    (broken / "rows" / "step-000002.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="step-000002.parquet"):
        of_run(broken)


def test_rows_without_a_response_and_dropped_rows_are_no_obstacle(tmp_path):
    place = tmp_path / "odd"
    made_run(place, steps=1)
    odd = [row(0, fault="the engine refused it", train=False, dropped_because="bad row"), row(1, y_o=response([]))]
    pq.write_table(to_table(odd), place / "rows" / "step-000002.parquet")
    pq.write_table(to_table([]), place / "rows" / "step-000003.parquet")
    found = of_run(place)
    assert found["about"]["rows"] == 10 and found["about"]["faults"] == 1 and found["about"]["steps"] == [1]
    alone = tmp_path / "alone"
    (alone / "rows").mkdir(parents=True)
    pq.write_table(to_table(odd), alone / "rows" / "step-000001.parquet")
    assert set(of_run(alone)) == {"about", "lengths", "subsets", "missing"}


def test_where_the_tokenizer_cannot_be_read_the_rest_is_there(run, tmp_path):
    place, _ = run
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    text = (moved / "recipe.yaml").read_text().replace("miniature:student", str(tmp_path / "gone"))
    (moved / "recipe.yaml").write_text(text)
    found = of_run(moved)
    assert "the student's tokenizer cannot be read" in found["missing"]["classes"]
    assert "classes" not in found and "reference" not in found["lengths"]["all"] and "signal" in found
