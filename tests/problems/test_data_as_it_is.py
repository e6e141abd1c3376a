"""Data of other trainers loads as it is: conversations, verl's and TRL's columns, and every column is kept."""

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray.config import DataConfig, EvaluationConfig, VerifyConfig
from trd_ray.errors import UserError
from trd_ray.problems.load import ProblemSet, load_benchmark, load_problems

SYSTEM = {"role": "system", "content": "Answer with a number."}
FIRST = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
LAST = {"role": "user", "content": "And 2+2?"}
REPLY = {"role": "assistant", "content": "It is \\boxed{4}."}
READS = VerifyConfig.model_validate({"functions": {"math": {"function": "math"}}, "by": "kind"})


def jsonl(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, *rows: dict) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def found(path: str, **spec) -> ProblemSet:
    """As for a recipe whose verifier reads the columns that are none of ours."""
    return load_problems(DataConfig(path=path, **spec), READS)


def one(path: str, **spec) -> dict:
    [row] = found(path, **spec).table.to_pylist()
    return row


def refusal(path: str, **spec) -> str:
    with pytest.raises(UserError) as refused:
        found(path, **spec)
    return str(refused.value)


# Conversations


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_conversation_asks_its_last_user_message_and_keeps_what_was_said_before(tmp_path, write, as_text):
    talk = [SYSTEM, *FIRST, LAST]
    path = write(tmp_path / "data", {"chat": json.dumps(talk) if as_text else talk, "answer": "4"})
    spec = {"format": "jsonl" if write is jsonl else "parquet"}
    row = one(path, columns={"problem": "chat"}, **spec)
    assert row["problem"] == "And 2+2?" and row["reference"] == ""
    assert json.loads(row["turns"]) == [SYSTEM, *FIRST]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_column_of_conversations_works_alone_and_its_answer_is_the_reference(tmp_path, column):
    path = jsonl(tmp_path / "a.jsonl", {column: [LAST, REPLY], "answer": "4"})
    loaded = found(path)
    assert loaded.table.select(["problem", "reference", "turns"]).to_pylist() == [
        {"problem": "And 2+2?", "reference": REPLY["content"], "turns": None}
    ]
    assert loaded.notes == (
        f"{path} has conversations, so problem is {column}, answer is answer (columns says otherwise)",
    )


def test_a_reference_of_the_data_goes_before_the_answer_that_ends_a_conversation(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"messages": [LAST, REPLY], "answer": "4", "reference": "2+2=4"})
    assert one(path)["reference"] == "2+2=4"


def test_sharegpt_s_names_and_parts_of_text_are_read(tmp_path):
    talk = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "1+1?"},
        {"from": "gpt", "value": "2"},
    ]
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]
    path = jsonl(tmp_path / "a.jsonl", {"messages": talk, "answer": "2"}, {"messages": parts, "answer": "2"})
    rows = found(path).table.to_pylist()
    assert [row["problem"] for row in rows] == ["1+1?", "1+1?"]
    assert json.loads(rows[0]["turns"]) == [{"role": "system", "content": "Be brief."}]
    assert [row["reference"] for row in rows] == ["2", ""]


def test_one_question_after_two_conversations_is_two_problems_with_ids_that_last(tmp_path):
    rows = [{"messages": [*FIRST, LAST], "answer": "4"}, {"messages": [LAST], "answer": "4"}]
    ids = found(jsonl(tmp_path / "a.jsonl", *rows)).table["problem_id"].to_pylist()
    assert len(set(ids)) == 2 and not any(one.endswith("-2") for one in ids)
    assert found(jsonl(tmp_path / "b.jsonl", *rows[::-1])).table["problem_id"].to_pylist() == ids[::-1]
    plain = found(jsonl(tmp_path / "c.jsonl", {"problem": LAST["content"], "answer": "4"})).table["problem_id"]
    assert plain.to_pylist() == ids[1:]  # the id of a text stays what it was


def test_a_problem_that_only_looks_like_a_list_is_text(tmp_path):
    for text in ("[1, 2, 3] sums to?", '[{"a": 1}]', "[1]", "[", "[]"):
        assert one(jsonl(tmp_path / "a.jsonl", {"problem": text, "answer": "6"}))["problem"] == text


@pytest.mark.parametrize(
    ("talk", "told"),
    [
        ([SYSTEM], "messages has no message of the user, which is the problem"),
        ([LAST, REPLY, REPLY], "has assistant, assistant, where only one answer may stand"),
        ([LAST, SYSTEM], "has system, where only one answer may stand"),
        ([{"role": "tool", "content": "4"}, LAST], "message 1 of messages is said by 'tool'"),
        ([LAST | {"content": None}], "message 1 of messages holds nothing, expected text"),
        ([{"role": "assistant", "tool_calls": []}, LAST], "message 1 of messages holds nothing, expected text"),
        ([LAST | {"content": 5}], "message 1 of messages holds a int, expected text"),
        ([LAST | {"content": "a\ud800"}], "which is no text"),
        ([LAST | {"content": [{"type": "image", "image": "x"}]}], "holds a part of the kind 'image'"),
        ([REPLY | {"tool_calls": [{"name": "add"}]}, LAST], "message 1 of messages calls a tool"),
        ([LAST | {"content": " "}], "messages is empty"),
        ([], "messages holds a list, expected text or a number"),
    ],
)
def test_a_conversation_that_asks_nothing_or_is_no_text_is_refused_with_its_place(tmp_path, talk, told):
    path = jsonl(tmp_path / "bad.jsonl", {"messages": talk, "answer": "4"})
    message = refusal(path)
    assert told in message and "bad.jsonl line 1" in message


def test_conversations_without_an_answer_say_what_to_set(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"messages": [LAST, REPLY]})
    assert refusal(path) == f"{path} has no column 'answer', only messages: set data.columns.answer=NAME"
    assert "answer holds a list, expected text or a number: it is a conversation, which only" in refusal(
        jsonl(tmp_path / "b.jsonl", {"problem": "?", "answer": [REPLY]})
    )


# verl, TRL

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [SYSTEM, LAST],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 7, "answer": "2+2=4 #### 4"},
}


def test_verl_s_parquet_is_known_by_its_columns_and_every_column_is_kept(tmp_path):
    path = parquet(tmp_path / "train.parquet", VERL)
    loaded = found(path)
    [row] = loaded.table.to_pylist()
    assert (row["problem"], row["answer"], row["reference"]) == ("And 2+2?", "4", "")
    assert json.loads(row["turns"]) == [SYSTEM]
    assert json.loads(row["extra"]) == {name: value for name, value in VERL.items() if name != "prompt"}
    assert loaded.notes == (
        f"{path} has verl's schema, so problem is prompt, answer is reward_model.ground_truth (columns says otherwise)",
    )


def test_a_row_may_lack_what_its_columns_are_known_by_where_nothing_needs_an_answer(tmp_path):
    path = parquet(tmp_path / "train.parquet", VERL | {"reward_model": None}, VERL)
    own = VerifyConfig(function="my_rewards.py:compute_score")
    assert load_problems(DataConfig(path=path), own).table["answer"].to_pylist() == ["", "4"]
    mapped = {"problem": "prompt", "answer": "reward_model.ground_truth"}
    assert "row 1: reward_model.ground_truth is empty" in refusal(path, columns=mapped)


def test_a_dot_names_a_field_of_a_column_and_the_map_goes_before_what_is_known(tmp_path):
    path = parquet(tmp_path / "train.parquet", VERL)
    mapped = {"problem": "prompt", "answer": "extra_info.index", "reference": "extra_info.answer"}
    loaded = found(path, columns=mapped)
    assert loaded.table.select(["answer", "reference"]).to_pylist() == [{"answer": "7", "reference": "2+2=4 #### 4"}]
    assert loaded.notes == ()
    text = jsonl(tmp_path / "a.jsonl", {"problem": "?", "info": json.dumps({"gold": {"value": 4}})})
    assert one(text, columns={"answer": "info.gold.value"})["answer"] == "4"
    dotted = jsonl(tmp_path / "b.jsonl", {"problem": "?", "info.gold": "4"})
    assert one(dotted, columns={"answer": "info.gold"})["answer"] == "4"


def test_a_field_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = parquet(tmp_path / "train.parquet", VERL)
    told = refusal(path, columns={"answer": "reward_model.ground_trut"})
    assert "did you mean reward_model.ground_truth?" in told and "reward_model.style" in told
    assert "but" in refusal(path, columns={"answer": "prompt.x"}) and "no fields in prompt" in refusal(
        path, columns={"answer": "prompt.x"}
    )
    missing = [VERL, VERL | {"reward_model": {"style": "rule", "ground_truth": None}}]
    assert "row 2: reward_model.ground_truth is empty" in refusal(parquet(tmp_path / "b.parquet", *missing))


def test_a_ground_truth_that_is_no_text_becomes_json(tmp_path):
    truth = {"target": 24, "numbers": [1, 2, 3]}
    path = parquet(tmp_path / "a.parquet", VERL | {"reward_model": {"style": "rule", "ground_truth": truth}})
    assert json.loads(one(path)["answer"]) == truth


@pytest.mark.parametrize(
    ("row", "answer", "reference"),
    [
        ({"prompt": "2+2?", "answer": "4"}, "4", ""),
        ({"prompt": "2+2?", "solution": "So \\boxed{4}"}, "So \\boxed{4}", "So \\boxed{4}"),
        ({"prompt": "2+2?", "answer": "4", "solution": "Count."}, "4", "Count."),
        ({"prompt": "2+2?", "answer": "4", "completion": "It is 4."}, "4", "It is 4."),
        (
            {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4", "completion": [REPLY]},
            "4",
            REPLY["content"],
        ),
        ({"prompt": "2+2?", "ground_truth": "4", "reference": "mine"}, "4", "mine"),
    ],
)
def test_trl_s_prompt_data_sets_are_known(tmp_path, row, answer, reference):
    loaded = found(jsonl(tmp_path / "a.jsonl", row))
    [problem] = loaded.table.to_pylist()
    assert (problem["problem"], problem["answer"], problem["reference"]) == ("2+2?", answer, reference)
    assert "has TRL's schema, so problem is prompt" in loaded.notes[0]


def test_trl_s_columns_are_known_in_a_csv_file_and_in_held_out_problems(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as out:
        csv.writer(out).writerows([["prompt", "answer", "level"], ["2+2?", "4", "easy"]])
    row = one(str(tmp_path / "a.csv"))
    assert (row["problem"], row["answer"], row["extra"]) == ("2+2?", "4", '{"level": "easy"}')
    held_out = load_problems(EvaluationConfig(path=parquet(tmp_path / "test.parquet", VERL)))
    assert held_out.table["answer"].to_pylist() == ["4"]
    named = load_benchmark(str(tmp_path / "test.parquet"), EvaluationConfig())
    assert named.table["answer"].to_pylist() == ["4"]


def test_a_column_named_problem_is_the_problem_whatever_else_there_is(tmp_path):
    row = {"problem": "2+2?", "prompt": "not this", "messages": [LAST], "answer": "4"}
    loaded = found(jsonl(tmp_path / "a.jsonl", row))
    assert loaded.table["problem"].to_pylist() == ["2+2?"] and loaded.notes == ()


def test_a_prompt_without_an_answer_is_refused_unless_a_verifier_of_one_s_own_needs_none(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "Write a poem."})
    assert "has no column 'answer', only prompt: set data.columns.answer=NAME" in refusal(path)
    own = VerifyConfig(function="my_rewards.py:score")
    assert load_problems(DataConfig(path=path), own).table["answer"].to_pylist() == [""]


# What is left over


def test_other_columns_are_kept_only_where_what_judges_may_read_them(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"problem": "2+2?", "answer": "4", "drafts": ["4"] * 9})
    kept = [
        load_problems(DataConfig(path=path), verify).table["extra"].to_pylist()
        for verify in (VerifyConfig(), VerifyConfig(function="math"), VerifyConfig(function="a.py:f"), READS)
    ]
    assert [extra == [None] for extra in kept] == [True, True, False, False]


def test_values_within_too_many_others_are_left_out_with_a_note(tmp_path):
    deep = jsonl(tmp_path / "a.jsonl", {"problem": "2+2?", "answer": "4", "level": 1})
    Path(deep).write_text(Path(deep).read_text().replace(": 1}", ': 1, "tree": ' + "[" * 500 + "]" * 500 + "}"))
    loaded = found(deep)
    assert json.loads(loaded.table["extra"][0].as_py()) == {"level": 1}
    assert "the column tree of the data holds values within more than 100 others, which are not kept" in loaded.notes[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("value", "why"),
    [("1" * 5000, "Exceeds the limit (4300 digits)"), ("[" * 10**5 + "]" * 10**5, "values within too many others")],
)
def test_json_that_python_does_not_read_is_refused_in_one_sentence(tmp_path, name, value, why):
    row = f'{{"problem": "2+2?", "answer": "4", "other": {value}}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    told = refusal(str(tmp_path / name))
    assert told.startswith(str(tmp_path / name)) and why in told and "leave such rows out" in told


def test_text_that_only_begins_like_a_deep_conversation_is_text(tmp_path):
    assert one(jsonl(tmp_path / "a.jsonl", {"prompt": "[" * 10**5, "answer": "4"}))["problem"] == "[" * 10**5


def test_columns_that_are_none_of_ours_are_kept_as_json_under_their_own_names(tmp_path):
    row = {"problem": "2+2?", "final": 4, "level": None, "tags": ["a", {"b": 1.5}], "source": "olympiad", "turns": 3}
    kept = one(jsonl(tmp_path / "a.jsonl", row), columns={"answer": "final"})
    assert json.loads(kept["extra"]) == {name: row[name] for name in ("final", "level", "tags", "source", "turns")}
    assert kept["source"] is None and kept["turns"] is None
    assert one(jsonl(tmp_path / "b.jsonl", {"problem": "2+2?", "answer": "4"}))["extra"] is None


def test_values_that_json_has_not_become_text_or_null_and_bytes_are_left_out_with_a_note(tmp_path):
    row = {
        "problem": "2+2?",
        "answer": "4",
        "day": datetime.date(2024, 5, 1),
        "price": Decimal("1.50"),
        "odd": float("inf"),
        "image": {"bytes": b"\x89PNG", "path": "a.png"},
    }
    loaded = found(parquet(tmp_path / "a.parquet", row))
    [kept] = loaded.table["extra"].to_pylist()
    assert json.loads(kept) == {"day": "2024-05-01", "price": "1.50", "odd": None}
    assert "the column image of the data holds bytes, which are not kept" in loaded.notes[0]
    half = jsonl(tmp_path / "b.jsonl", {"problem": "?", "answer": "4", "note": "é\ud800"})
    assert json.loads(one(half)["extra"]) == {"note": "é\ud800"}


def test_a_table_that_was_ours_before_comes_back_as_it_was(tmp_path):
    table = found(parquet(tmp_path / "train.parquet", VERL)).table
    pq.write_table(table, tmp_path / "again.parquet")
    assert found(str(tmp_path / "again.parquet")).table.equals(table)
