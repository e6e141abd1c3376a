"""Problems come in whole or not at all, and a run meets them in an order that nothing but its recipe decides."""

import csv
import gzip
import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray.config import DataConfig, EvaluationConfig
from trd_ray.errors import UserError
from trd_ray.problems import taco
from trd_ray.problems.columns import SCHEMA
from trd_ray.problems.load import load_benchmark, load_problems
from trd_ray.problems.order import Length, Order, length, seed_of_row
from trd_ray.rows import to_table
from trd_ray.verify.code.tests import Tests

ROWS = [{"problem": f"{i} + 1 = ?", "answer": str(i + 1), "reference": f"\\boxed{{{i + 1}}}"} for i in range(7)]


def jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: str, **spec) -> pa.Table:
    return load_problems(DataConfig(path=path, **spec)).table


def refusal(path: str, **spec) -> str:
    with pytest.raises(UserError) as refused:
        load(path, **spec)
    return str(refused.value)


# Sources


def test_the_same_problems_come_from_jsonl_json_parquet_a_folder_and_a_glob(tmp_path):
    whole = jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    parts = tmp_path / "parts"
    parts.mkdir()
    jsonl(parts / "0.jsonl", ROWS[:4])
    pq.write_table(pa.Table.from_pylist(ROWS[4:]), parts / "1.parquet")
    expected = load(whole)
    assert expected.schema == SCHEMA
    assert expected.select(["problem", "answer", "reference"]).to_pylist() == ROWS
    for source in (tmp_path / "a.json", tmp_path / "a.parquet", parts, parts / "*"):
        assert load(str(source)).equals(expected), source


def test_parquet_written_by_the_datasets_library_loads(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "d.parquet")
    assert load(str(tmp_path / "d.parquet")).num_rows == len(ROWS)


def test_the_shipped_word_problems_are_right_and_split_without_overlap():
    train, test = load("word_problems:train"), load_problems(EvaluationConfig(path="word_problems:test")).table
    assert (train.num_rows, test.num_rows) == (32, 8)
    assert not set(train["problem"].to_pylist()) & set(test["problem"].to_pylist())
    for row in train.to_pylist() + test.to_pylist():
        assert row["answer"].isdigit()
        assert row["reference"].endswith(f"\\boxed{{{row['answer']}}}.")


def test_columns_are_mapped_by_name_and_numbers_become_text(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", [{"question": "6*7?", "final": 42, "n": 1}, {"question": "1/2?", "final": 0.5, "n": 2}]
    )
    table = load(path, columns={"problem": "question", "answer": "final", "problem_id": "n"})
    assert table.drop_columns(["teacher"]).to_pylist() == [
        {"problem_id": "1", "problem": "6*7?", "answer": "42", "reference": "", "tests": None},
        {"problem_id": "2", "problem": "1/2?", "answer": "0.5", "reference": "", "tests": None},
    ]


def test_ids_made_here_survive_appending_and_reordering(tmp_path):
    twice = [*ROWS, ROWS[0]]
    first = load(jsonl(tmp_path / "a.jsonl", ROWS))["problem_id"].to_pylist()
    grown = load(jsonl(tmp_path / "b.jsonl", twice))["problem_id"].to_pylist()
    turned = load(jsonl(tmp_path / "c.jsonl", ROWS[::-1]))["problem_id"].to_pylist()
    assert grown[: len(first)] == first
    assert grown[-1] == f"{first[0]}-2"
    assert turned == first[::-1]


def test_limit_keeps_the_first_rows_and_looks_at_no_others(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*ROWS, {"problem": "", "answer": ""}])
    assert load(path, limit=3)["answer"].to_pylist() == ["1", "2", "3"]


def test_problems_without_a_reference_are_kept_or_left_out_as_asked(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*ROWS, {"problem": "?", "answer": "1", "reference": " "}])
    assert load(path).num_rows == 8
    assert load(path, without_reference="drop").num_rows == 7
    bare = jsonl(tmp_path / "b.jsonl", [{"problem": "?", "answer": "1"}])
    assert "data.columns.reference=NAME" in refusal(bare, without_reference="drop")


STDIO = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
CALLS = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}


def unpacked(path: str, **spec) -> list[Tests | None]:
    return [packed and Tests.unpack(packed) for packed in load(path, **spec)["tests"].to_pylist()]


def test_tests_come_as_objects_as_their_text_and_packed_and_need_no_answer(tmp_path):
    full = {"kind": "function", "entry_point": "add", "inputs": [[1, 2]], "outputs": [3], "time_limit_s": 2.5}
    cells = [STDIO, json.dumps(STDIO), CALLS, full]
    path = jsonl(tmp_path / "a.jsonl", [{"problem": f"Add {i}.", "tests": cell} for i, cell in enumerate(cells)])
    found = unpacked(path)
    assert found[0] == found[1] == taco.tests_of(STDIO)
    assert (found[0].kind, found[0].compare, found[0].inputs) == ("stdio", "tokens", ["1 2\n", "3 4\n"])
    assert (found[2].kind, found[2].compare, found[2].entry_point) == ("function", "equal", "add")
    assert (found[3].inputs, found[3].outputs, found[3].time_limit_s) == ([[1, 2]], [3], 2.5)
    table = load(path)
    assert table["answer"].to_pylist() == [""] * 4
    pq.write_table(table, tmp_path / "again.parquet")  # packed
    assert load(str(tmp_path / "again.parquet")).equals(table)
    nested = [{"problem": "Add.", "tests": STDIO | {"kind": "stdio"}}]  # a struct of Parquet, with nulls for the rest
    schema = pa.struct(
        [("kind", pa.string()), ("time_limit_s", pa.float64()), *[(n, pa.list_(pa.string())) for n in STDIO]]
    )
    rows = pa.Table.from_pylist(nested, schema=pa.schema({"problem": pa.string(), "tests": schema}))
    pq.write_table(rows, tmp_path / "struct.parquet")
    [struct] = unpacked(str(tmp_path / "struct.parquet"))
    assert (struct.kind, struct.inputs, struct.outputs) == ("stdio", STDIO["inputs"], STDIO["outputs"])


def test_mathematics_and_code_may_stand_in_one_file(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": 2}, {"problem": "Add.", "tests": STDIO}])
    assert load(path)["answer"].to_pylist() == ["2", ""]
    assert [tests is None for tests in unpacked(path)] == [True, False]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tests": None}, "tests is empty, and there is no answer"),
        ({"tests": "", "answer": ""}, "answer is empty"),
        ({"tests": "{"}, "tests holds no tests"),
        ({"tests": [1]}, "tests holds no tests (a list)"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "1 inputs but 0 outputs"),
        ({"tests": {"inputs": [], "outputs": []}}, "has no case"),
        ({"tests": {"inputs": [1], "outputs": ["1"]}}, "inputs and outputs of a stdio test are text"),
        ({"tests": {"kind": "stdio", "inputs": [], "outputs": [], "timeout": 1}}, "timeout"),
        ({"tests": CALLS | {"inputs": [1]}}, "list of its arguments"),
        ({"input_output": "{}"}, "set data.columns.tests=input_output"),
    ],
)
def test_rows_without_tests_that_could_judge_are_refused(tmp_path, row, told):
    message = refusal(jsonl(tmp_path / "bad.jsonl", [{"problem": "Add."} | row]))
    assert told in message and "bad.jsonl" in message


def test_lines_of_a_gzip_file_and_of_an_arrow_stream_are_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(Path(jsonl(tmp_path / "a.jsonl", ROWS)).read_bytes()))
    table = pa.Table.from_pylist(ROWS)
    for name, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with writer(tmp_path / f"{name}.arrow", table.schema) as out:
            out.write_table(table)
    expected = load(str(tmp_path / "a.jsonl"))
    for name in ("a.jsonl.gz", "stream.arrow", "file.arrow"):
        assert load(str(tmp_path / name)).equals(expected), name
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-12])
    assert "is not a whole gzip file" in refusal(str(cut))
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "file.arrow").read_bytes()[:200])
    assert "is not a readable Arrow file" in refusal(str(tmp_path / "cut.arrow"))


def test_unicode_line_separators_inside_a_string_do_not_end_the_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"problem": "a\u2028b", "answer": "1"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(str(path))["problem"].to_pylist() == ["a\u2028b"]


def test_the_same_problems_come_from_csv_and_tsv_whose_cells_hold_commas_quotes_and_lines(tmp_path):
    hard = {"problem": 'Say "a, b"\nand\tc\u2028d', "answer": "007", "reference": ""}
    expected = load(jsonl(tmp_path / "a.jsonl", [*ROWS, hard]))
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", encoding="utf-8-sig", newline="") as out:
            writer = csv.DictWriter(out, ["problem", "answer", "reference"], delimiter=separator)
            writer.writeheader()
            writer.writerows([*ROWS, hard])
        assert load(str(tmp_path / name)).equals(expected), name
    (tmp_path / "tables").mkdir()
    (tmp_path / "a.csv").rename(tmp_path / "tables" / "a.csv")
    assert load(str(tmp_path / "tables")).equals(expected)
    jsonl(tmp_path / "tables" / "b.jsonl", ROWS[:2])  # beside which a table is notes
    assert load(str(tmp_path / "tables")).num_rows == 2


# Refusals


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"problem": "a", "answer": "1"}\n{"problem": "b", "ans', "line 2 is not valid JSON"),
        ('{"problem": "a", "answer": "1"}\n[1]\n', "line 2 holds a list"),
        ('{"question": "a", "answer": "1"}\n', "set data.columns.problem=question"),
        ('{"problm": "a", "answer": "1"}\n', "set data.columns.problem=problm"),
        ('{"x": "a", "answer": "1"}\n', "has no column 'problem', only x, answer: set data.columns.problem=NAME"),
        ('{"problem": "a"}\n', "set data.columns.answer=NAME"),
        ('{"problem": "a", "answer": "1"}\n{"problem": "  ", "answer": "1"}\n', "line 2: problem is empty"),
        ('{"problem": "a", "answer": ""}\n', "line 1: answer is empty"),
        ('{"problem": "a", "answer": null}\n', "line 1: answer is empty"),
        ('{"problem": "a", "answer": NaN}\n', "line 1: answer is empty"),
        ('{"problem": "a", "answer": ["1"]}\n', "line 1: answer holds a list, expected text or a number"),
        ('{"problem": "a", "answer": true}\n', "line 1: answer holds a bool"),
        ('{"problem": "a\\ud800", "answer": "1"}\n', "which is no text"),
        ('{"problem_id": 1, "problem": "a", "answer": "1"}\n{"problem_id": "1", "problem": "b", "answer": "2"}\n',
         "the problem_id '1' stands twice"),
    ],
)  # fmt: skip
def test_faulty_lines_are_refused_with_their_place(tmp_path, text, told):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    message = refusal(str(path))
    assert told in message
    assert "bad.jsonl" in message


def test_files_that_cannot_be_read_are_refused_with_their_name(tmp_path):
    assert "there is no data file" in refusal(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"problem": "é", "answer": "1"}'.encode("latin-1"))
    assert "is not UTF-8 text" in refusal(str(tmp_path / "latin.jsonl"))
    (tmp_path / "empty.parquet").write_bytes(b"")
    assert "is empty" in refusal(str(tmp_path / "empty.parquet"))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert "is not a readable Parquet file" in refusal(str(tmp_path / "cut.parquet"))
    pq.write_table(pa.Table.from_pylist(ROWS[:0], schema=SCHEMA), tmp_path / "rowless.parquet")
    assert "holds no problems" in refusal(str(tmp_path / "rowless.parquet"))
    (tmp_path / "folder").mkdir()
    assert "holds no .jsonl, .json or .parquet file" in refusal(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is empty: put the column names in its first line"),
        (b"problem,answer\n", "holds no problems"),
        (b"problem,answer\n1, 2 or 3,2\n", "line 2 has 3 cells where the first line names 2 columns"),
        (b'problem,answer\na,1\n"b,2\n', "is not valid CSV (unexpected end of data); is the file cut off?"),
        (b"problem,answer\na,1\nb,\n", "line 3: answer is empty"),
        (b"question,answer\na,1\n", "set data.columns.problem=question"),
        ("problem,answer\né,1\n".encode("latin-1"), "is not UTF-8 text: save it as CSV in UTF-8"),
    ],
)
def test_a_faulty_table_is_refused_with_its_place(tmp_path, text, told):
    (tmp_path / "bad.csv").write_bytes(text)
    message = refusal(str(tmp_path / "bad.csv"))
    assert told in message and "bad.csv" in message


def test_a_spreadsheet_and_conversations_are_called_what_they_are(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    assert "a.xlsx is a spreadsheet, which is not read: save its sheet as CSV" in refusal(str(tmp_path / "a.xlsx"))
    talk = jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "1+1?"}], "answer": "2"}])
    assert "a problem is one text and not a conversation" in refusal(talk)
    assert "it is a conversation, so write the user's message" in refusal(talk, columns={"problem": "messages"})


def test_a_column_map_that_names_nothing_is_refused_with_the_columns_there_are(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"}])
    told = refusal(path, columns={"problem": "qestion"})
    assert "did you mean question?" in told and "question, answer" in told
    assert "data.columns.prob" in refusal(path, columns={"prob": "question"})


def test_a_name_that_is_neither_a_file_nor_reachable_says_so_at_once():
    told = refusal("some-org/some-data")
    assert "neither a file or folder here nor a Hugging Face data set" in told


def test_a_difficulty_is_not_ignored_where_the_data_has_none(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"problem": "a", "answer": "1"}])
    assert "data.difficulty selects problems of TACO: set data.format=taco" in refusal(path, difficulty=["EASY"])


def test_messages_about_evaluation_data_name_the_evaluation_keys(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"}])
    with pytest.raises(UserError, match=r"set evaluation\.columns\.problem=question"):
        load_problems(EvaluationConfig(path=path))


def test_all_missing_columns_are_named_at_once_with_what_to_type(tmp_path):
    rows = [{"question": "a", "final_answer": "1", "hint": "b"}]
    told = refusal(jsonl(tmp_path / "a.jsonl", rows))
    assert "has no columns 'problem' and 'answer', only question, final_answer, hint" in told
    assert told.endswith("set data.columns.problem=question data.columns.answer=final_answer")
    told = refusal(str(tmp_path / "a.jsonl"), columns={"problem": "qestion", "reference": "solution"})
    assert all(part in told for part in ("'qestion' (did you mean question?)", "'solution'", "answer=final_answer"))


def test_held_out_problems_are_read_by_the_columns_of_the_training_data_where_they_have_them(tmp_path):
    columns = {"problem": "question", "answer": "final_answer", "reference": "solution", "problem_id": "uid"}
    rows = [{"question": "a", "final_answer": "1", "answer": "not this"}]
    held_out = EvaluationConfig(path=jsonl(tmp_path / "a.jsonl", rows))
    table = load_problems(held_out, also_columns=columns).table
    assert (table["problem"].to_pylist(), table["answer"].to_pylist()) == (["a"], ["1"])
    assert table["reference"].to_pylist() == [""]
    own = held_out.model_copy(update={"columns": {"answer": "answer"}})
    assert load_problems(own, also_columns=columns).table["answer"].to_pylist() == ["not this"]


@pytest.mark.parametrize("path", ["word_problems", "word_problems:dev", "miniature:dev"])
def test_a_part_that_does_not_exist_is_refused_with_those_that_do(path):
    name = path.partition(":")[0]
    assert f"{name}:train or {name}:test" in refusal(path)


# The one door


def test_whatever_the_source_the_door_says_what_was_set_aside_and_why(tmp_path):
    rows = [*ROWS[:2], {"problem": "Why is this problem so very long that it must be shortened? Why?", "answer": "1"}]
    spec = DataConfig(path=jsonl(tmp_path / "a.jsonl", rows), without_reference="drop")
    found = load_problems(spec)
    assert found.table["problem"].to_pylist() == [row["problem"] for row in ROWS[:2]]
    [out] = found.set_aside
    assert out.name == "Why is this problem so very long that it must be shortened? "
    assert out.reason == "no reference, and data.without_reference is drop"
    assert out.problem_id not in found.table["problem_id"].to_pylist()
    whole = load_problems(DataConfig(path=spec.path))
    assert (whole.table.num_rows, whole.set_aside, whole.notes) == (3, (), ())


def test_held_out_problems_may_be_a_benchmark_which_the_door_tells_of(tmp_path):
    rows = [
        {"question_id": 1, "prompt": "How many?", "answer": "\\boxed{12}", "answer_type": "number"},
        {"question_id": 7, "prompt": "Describe all.", "answer": "All linear ones.", "answer_type": "description"},
    ]
    spec = EvaluationConfig(path=f"amobench:{jsonl(tmp_path / 'amo.jsonl', rows)}")
    found = load_problems(spec)
    assert found.table["problem_id"].to_pylist() == ["amobench/1"] and not found.has_tests
    [out] = found.set_aside
    assert (out.problem_id, out.name, out.reason) == ("amobench/7", "Describe all.", "no rule can grade its answer")
    assert found.benchmark is not None and found.benchmark.title.startswith("AMO-Bench")
    assert found.notes[0] == "amobench: 1 problems that no rule can grade are left out"


def test_a_word_is_a_benchmark_or_refused_unless_it_is_said_to_be_of_the_hub():
    with pytest.raises(UserError, match="there is no benchmark aime42"):
        load_problems(EvaluationConfig(path="aime42"))
    with pytest.raises(UserError, match="neither a file or folder here nor a Hugging Face data set"):
        load_problems(EvaluationConfig(path="aime42", format="hub"))


def test_a_file_that_is_named_for_an_evaluation_needs_no_columns_where_they_are_called_as_usual(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", [{"question": "1+1?", "final": "2"}])
    found = load_benchmark(path, EvaluationConfig(columns={"answer": "final"}))
    assert found.table.select(["problem", "answer"]).to_pylist() == [{"problem": "1+1?", "answer": "2"}]
    assert found.benchmark is not None and (found.benchmark.name, found.benchmark.source) == ("mine", path)


def test_the_problems_of_a_corpus_come_once_each_in_the_order_of_its_rows(tmp_path):
    (tmp_path / "rows").mkdir()
    for part in range(2):
        rows = [
            {**ROWS[i % 3], "problem_id": f"p{i % 3}", "row": i, "step": part, "epoch": 0, "sample_index": 0, "seed": i}
            for i in range(4 * part, 4 * part + 4)
        ]
        pq.write_table(to_table(rows), tmp_path / "rows" / f"step-{part:06d}.parquet")
    spec = DataConfig(source="corpus", path=str(tmp_path))
    assert load_problems(spec).table.schema == SCHEMA
    assert load_problems(spec).table["problem"].to_pylist() == [row["problem"] for row in ROWS[:3]]
    assert load_problems(spec, corpus_rows=2).table["problem_id"].to_pylist() == ["p0", "p1"]


# Order


@pytest.fixture
def table(tmp_path) -> pa.Table:
    return load(jsonl(tmp_path / "a.jsonl", ROWS))


def rows(table: pa.Table, start_step: int = 0, **spec) -> list[dict]:
    order = Order(table.num_rows, **({"seed": 0, "rollouts_per_step": 4} | spec))
    found = order.rows(start_step * order.rollouts_per_step, order.length.rows)
    problems = table.to_pylist()
    return [problems[row["problem_number"]] | row for row in found]


def test_the_order_is_the_same_every_time_and_another_with_another_seed(table):
    assert rows(table, steps=5) == rows(table, steps=5)
    assert [r["problem_id"] for r in rows(table, steps=5)] != [r["problem_id"] for r in rows(table, steps=5, seed=1)]


def test_the_order_never_changes_between_versions(table):
    # Written down once: a run begun with one version must be resumed with the next.
    assert [r["answer"] for r in rows(table, steps=3)] == ["4", "3", "2", "7", "1", "5", "6", "5", "6", "2", "7", "3"]
    assert rows(table, steps=1)[0]["seed"] == 7689419447139100721


def test_a_resumed_order_is_the_tail_of_the_whole(table):
    whole = rows(table, steps=9, samples_per_problem=2)
    for start in range(10):
        assert rows(table, steps=9, samples_per_problem=2, start_step=start) == whole[start * 4 :]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("problems", "samples", "steps"), [(1, 1, 3), (5, 1, None), (5, 3, 9), (64, 2, None)])
def test_any_range_of_the_order_is_what_counting_from_the_first_row_gives(problems, samples, steps, shuffle):
    order = Order(problems, 7, 4, samples, shuffle, steps)
    naive = []
    for epoch in range(100):
        raw = np.random.PCG64([7, epoch]).random_raw(problems).tolist()
        ranked = sorted(range(problems), key=lambda number: raw[number]) if shuffle else range(problems)  # noqa: B023
        for number, sample in itertools.product(ranked, range(samples)):
            row = len(naive)
            where = {"row": row, "step": row // 4, "epoch": epoch, "sample_index": sample}
            naive.append({"problem_number": number, **where, "seed": seed_of_row(7, row)})
    naive = naive[: order.length.rows]
    assert list(order.rows(0, len(naive))) == naive
    for first in range(len(naive) + 2):
        for end in (first, first + 1, first + 5, len(naive) + 3):
            assert list(order.rows(first, end)) == naive[first:end]
    assert list(pickle.loads(pickle.dumps(order)).rows(2, 3)) == naive[2:3]


def test_every_epoch_meets_every_problem_samples_per_problem_times(table):
    found = rows(table, rollouts_per_step=6, samples_per_problem=3, steps=14)  # 84 rows: four epochs of 21
    for epoch in range(4):
        of_epoch = Counter(r["problem_id"] for r in found if r["epoch"] == epoch)
        assert of_epoch == dict.fromkeys(table["problem_id"].to_pylist(), 3)
    assert all({f["sample_index"] for f in found[i : i + 3]} == {0, 1, 2} for i in range(0, 84, 3))


def test_epochs_are_shuffled_apart_and_unshuffled_order_is_the_data_s(table):
    found = [r["problem_id"] for r in rows(table, rollouts_per_step=7, steps=2)]
    assert found[:7] != found[7:]
    ids = table["problem_id"].to_pylist()
    assert [r["problem_id"] for r in rows(table, rollouts_per_step=7, steps=2, shuffle=False)] == ids * 2


def test_rows_count_up_steps_follow_and_no_two_rows_share_a_sampling_seed(table):
    found = rows(table, steps=100)
    assert [r["row"] for r in found] == list(range(400))
    assert [r["step"] for r in found] == [i // 4 for i in range(400)]
    assert len({r["seed"] for r in found}) == 400
    assert all(0 <= r["seed"] < 2**63 for r in found)


@pytest.mark.parametrize(
    ("problems", "samples", "steps", "expected"),
    [
        (4, 1, None, Length(1, 4, 0)),
        (7, 1, None, Length(1, 4, 3)),  # the partial last step is dropped and counted
        (3, 1, None, Length(1, 3, 0)),  # unless it is the only one
        (3, 2, None, Length(1, 4, 2)),
        (3, 1, 5, Length(5, 20, 0)),  # as many epochs as it takes
    ],
)
def test_length_tells_what_the_order_yields(table, problems, samples, steps, expected):
    spec = {"rollouts_per_step": 4, "samples_per_problem": samples, "steps": steps}
    assert length(problems, **spec) == expected
    assert len(rows(table.slice(0, problems), **spec)) == expected.rows
