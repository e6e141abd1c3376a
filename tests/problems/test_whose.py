"""Whose a row is: said by its own column or by its source, and refused before anything starts where it is not."""

import json

import pyarrow as pa
import pytest

from trd_ray.config import DataConfig
from trd_ray.errors import UserError
from trd_ray.problems.load import load_problems
from trd_ray.problems.whose import with_teachers, without_problems

NAMES = ["maths", "code"]


def table(teachers: list, **columns: list) -> pa.Table:
    ids = [f"p{i}" for i in range(len(teachers))]
    return pa.table({"problem_id": ids, "teacher": pa.array(teachers, pa.string())} | columns)


def test_a_row_has_the_teacher_that_it_names_and_else_the_one_called_as_its_source():
    given = table(["maths", None, None], source=["code", "code", "maths"])
    assert with_teachers(given, NAMES, "d")["teacher"].to_pylist() == ["maths", "code", "maths"]


def test_with_one_teacher_no_row_names_one():
    assert with_teachers(table(["maths", "x"]), [], "d")["teacher"].to_pylist() == [None, None]
    without = table(["maths", None]).drop_columns(["teacher"])
    assert with_teachers(without, [], "d")["teacher"].to_pylist() == [None, None]


def test_an_unknown_name_is_refused_with_the_names_that_are_known():
    with pytest.raises(UserError, match="1 of 2 problems of d .*'math' of problem p1; .* maths, code .did you mean ma"):
        with_teachers(table(["code", "math"]), NAMES, "d")


def test_a_row_without_a_teacher_is_refused_with_what_to_set():
    with pytest.raises(UserError, match="2 of 3 problems of d name no teacher, the first being p1.*set data.teacher_c"):
        with_teachers(table(["code", None, ""]), NAMES, "d")
    with pytest.raises(UserError, match="fill the column 'topic'"):
        with_teachers(table([None]), NAMES, "d", column="topic")
    with pytest.raises(UserError, match="1 of 1 rows of d name no teacher.*set teacher in place of teachers, or make"):
        with_teachers(table([None], source=["code"]), NAMES, "d", "topic", corpus=True)  # refined by whom it names


def test_a_teacher_of_no_problem_is_told():
    assert without_problems(table(["code"]), NAMES) == [
        "no problem names the teacher maths: its engines and its weights wait in vain"
    ]


def write(tmp_path, rows: list[dict]) -> str:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_column_that_the_recipe_names_is_read_and_no_other(tmp_path):
    rows = [
        {"problem": "1+1", "answer": "2", "topic": "maths", "teacher": ["Mrs", "Smith"]},
        {"problem": "f", "answer": "g", "topic": " code ", "teacher": None},
        {"problem": "h", "answer": "i", "topic": None, "teacher": None},
    ]
    path = write(tmp_path, rows)
    found = load_problems(DataConfig(path=path, teacher_column="topic")).table
    assert found["teacher"].to_pylist() == ["maths", "code", None]
    assert load_problems(DataConfig(path=path)).table["teacher"].to_pylist() == [None] * 3


def test_a_column_that_is_not_there_is_refused_by_the_key_that_names_it(tmp_path):
    path = write(tmp_path, [{"problem": "1+1", "answer": "2", "topic": "maths"}])
    with pytest.raises(UserError, match="data.teacher_column names the column 'topics'.*did you mean topic"):
        load_problems(DataConfig(path=path, teacher_column="topics"))
