"""What is given in Python is a recipe that the command line takes: the same keys, the same files, the same refusals."""

import datetime
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from trd_ray import config
from trd_ray.api import given
from trd_ray.config import DataConfig
from trd_ray.errors import UserError
from trd_ray.problems.corpus import open_corpus, problems_of_corpus
from trd_ray.problems.load import load_problems
from trd_ray.rows import to_table

ROWS = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(3)]


def loaded(found: dict) -> list[tuple[str, str]]:
    table = load_problems(DataConfig(**found)).table
    return list(zip(table["problem"].to_pylist(), table["answer"].to_pylist(), strict=True))


EXPECTED = [(row["problem"], row["answer"]) for row in ROWS]


# Keys


def test_keys_go_before_those_of_the_recipe_and_groups_are_merged():
    recipe = {"name": "mine", "learner": {"lr": 1.0, "epochs": 2}, "data": {"path": Path("a.jsonl")}}
    tree = given.tree_of(
        recipe, {"learner": {"lr": np.float64(0.5)}, "data.limit": 3, "evaluation.columns.answer": "x"}
    )
    assert tree == {
        "name": "mine",
        "learner": {"lr": 0.5, "epochs": 2},
        "data": {"path": "a.jsonl", "limit": 3},
        "evaluation": {"columns": {"answer": "x"}},
    }
    named = {"evaluation": {"sets": {"v1.5": {"path": "old.jsonl"}}}}
    assert given.tree_of(named, named) == named
    assert recipe["learner"]["lr"] == 1.0


def test_a_shipped_recipe_and_a_file_are_read(tmp_path):
    assert given.tree_of("miniature_opsd", {"steps": 5})["steps"] == 5
    (tmp_path / "mine.yaml").write_text("steps: 3\nlearner:\n")
    assert given.tree_of(tmp_path / "mine.yaml", {"learner.lr": 0.1}) == {"steps": 3, "learner": {"lr": 0.1}}


@pytest.mark.parametrize(
    "recipe, keys, said",
    [
        (7, {}, "a recipe is a name, a file or a dict of keys, but this is of type int"),
        ({"steps": 1}, {"steps.x": 1}, "steps holds a value, not a group"),
        ({"data": {"path": object()}}, {}, "data.path must be a value that YAML can hold, but is of type object"),
        ("no_such_recipe", {}, "there is no recipe 'no_such_recipe'"),
    ],
)
def test_what_is_no_recipe_is_refused(recipe, keys, said):
    with pytest.raises(UserError, match=said):
        given.tree_of(recipe, keys)


def test_what_is_written_is_the_same_recipe(tmp_path):
    tree = given.tree_of({"name": "mine", "prompts": {"solve": "{problem}\n\nÜber: \\boxed{}"}}, {"learner.lr": 2e-6})
    place = given.write_recipe(tree, tmp_path / "given" / "mine.yaml")
    assert config.load(str(place)) == config.from_tree(tree)


def test_overrides_say_the_same_as_the_tree():
    tree = {"steps": 5, "learner": {"lr": 2e-6, "lora": {}}, "data": {"path": "a b.jsonl", "columns": {"answer": "x"}}}
    arguments = {"tolerance": 1e-6, "says": "a: 'b'\nc, é", "of": [1e-9, None, True, "1e-3"]}
    tree["verify"] = {"function": "package.module:passes", "arguments": arguments}
    tree["evaluation"] = {"sets": {"v1.5": {"path": "old.jsonl"}}}
    found: dict = {}
    for override in given.overrides(tree):
        config.apply_override(found, override)
    assert config.from_tree(found) == config.from_tree(tree) and found["verify"] == tree["verify"]


def test_a_function_beside_a_recipe_is_found_from_any_folder_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "score.py").write_text("def passes(text, problem): return True\n")
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.write_text("verify: {function: 'score.py:passes'}\n")
    tree = given.tree_of("recipes/mine.yaml", {"steps": 3})
    place = given.write_recipe(tree, tmp_path / "runs" / "given" / "mine.yaml")
    assert config.load(str(place)).verify == config.load(str(recipe)).verify
    assert given.tree_of(recipe, {"verify.function": "math"})["verify"]["function"] == "math"


# Problems


@pytest.mark.parametrize(
    "made",
    [
        lambda: ROWS,
        lambda: (row for row in ROWS),
        lambda: datasets.Dataset.from_list(ROWS),
        lambda: datasets.Dataset.from_list([*ROWS, {"problem": "no", "answer": "no"}]).select(range(3)),
        lambda: pd.DataFrame(ROWS),
        lambda: pa.Table.from_pylist(ROWS),
        lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    ],
    ids=["list", "generator", "Dataset", "selection", "frame", "table", "iterable"],
)
def test_problems_of_any_kind_are_the_same_problems(made, tmp_path):
    assert loaded(given.problems(made(), tmp_path)) == EXPECTED
    assert [place.name[0] for place in tmp_path.iterdir()] == ["p"]  # no temporary file is left


def test_the_same_problems_are_the_same_file(tmp_path):
    assert given.problems(ROWS, tmp_path) == given.problems([dict(row) for row in ROWS], tmp_path)
    assert given.problems(ROWS[:2], tmp_path) != given.problems(ROWS, tmp_path)


def test_a_path_or_a_name_stays_as_it_is(tmp_path):
    assert given.problems("miniature:train", tmp_path)["path"] == "miniature:train"
    assert given.problems(tmp_path / "a.jsonl", tmp_path)["path"] == str(tmp_path / "a.jsonl")


def test_cells_of_numpy_dates_and_lists_are_kept(tmp_path):
    row = {"problem": "?", "answer": np.int64(4), "info": {"when": datetime.date(2026, 1, 2), "xs": np.arange(2)}}
    [line] = Path(given.problems([row], tmp_path)["path"]).read_text().splitlines()
    assert json.loads(line) == {"problem": "?", "answer": 4, "info": {"when": "2026-01-02", "xs": [0, 1]}}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([], "there are no problems"),
        (["1+1"], "row 1 of problems is of type str, not a dict: give a list of dicts"),
        (7, "problems is of type int: give a list"),
        ({"problem": "?"}, "problems is of type dict: give a list"),
        ([{"problem": "?", "answer": object()}], "row 1 of problems holds what is neither text nor a number"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
            "problems has the parts train: give one of them",
        ),
        (datasets.Dataset.from_list([]), "there are no problems"),
    ],
)
def test_what_is_no_set_of_problems_is_refused(wrong, said, tmp_path):
    with pytest.raises(UserError, match=said):
        given.problems(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def corpus(numbers: range) -> datasets.Dataset:
    trajectory = {"ids": [1, 2], "text": "4", "passed": True}
    rows = [
        {
            "problem_id": f"p{i}", "problem": f"{i}?", "answer": "4", "reference": "", "row": i, "step": 1, "epoch": 0,
            "sample_index": 0, "seed": i, "y_o": trajectory, "y_r": trajectory, "train": True, "response_ids": [1, 2],
        }
        for i in numbers
    ]  # fmt: skip
    return datasets.Dataset(to_table(rows))


def test_what_refine_gave_is_trained_on_as_a_corpus_also_when_it_was_filtered(tmp_path):
    found = given.problems(corpus(range(8)).filter(lambda row: row["seed"] % 2 == 0), tmp_path)
    assert found["source"] == "corpus"
    kept = open_corpus(found["path"]).to_table()
    assert kept["row"].to_pylist() == [0, 1, 2, 3] and kept["seed"].to_pylist() == [0, 2, 4, 6]
    assert problems_of_corpus(found["path"])["problem_id"].to_pylist() == ["p0", "p2", "p4", "p6"]
    assert given.problems(corpus(range(0, 8, 2)), tmp_path) == found


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / "given"
    for write in (
        lambda: given.write_recipe({}, folder / "mine.yaml"),
        lambda: given.problems(ROWS, folder),
        lambda: given.problems(corpus(range(2)), folder),
    ):
        with pytest.raises(UserError, match="cannot hold the .*set run_dir to another place"):
            write()


def test_the_directory_of_a_run_is_a_corpus(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "recipe.yaml").touch()
    assert given.problems(tmp_path, tmp_path / "given")["source"] == "corpus"


# Code


def test_code_becomes_keys_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "rewards_given.py").write_text(
        "def score(text, problem): ...\nclass Watch: ...\ndef count(rows): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import rewards_given  # pyright: ignore

    tree = given.own_code(tmp_path, rewards_given.score, rewards_given.count, [rewards_given.Watch, "other.py:Watch"])
    file = str(tmp_path / "rewards_given.py")
    assert tree == {
        "verify": {"function": f"{file}:score"},
        "metrics": {"function": f"{file}:count"},
        "callbacks": [f"{file}:Watch", "other.py:Watch"],
    }
    assert given.own_code(tmp_path, "math") == {"verify": {"function": "math"}} and given.own_code(tmp_path) == {}
    with pytest.raises(UserError, match="callbacks is a list"):
        given.own_code(tmp_path, callbacks=rewards_given.Watch)


def test_no_library_of_tables_is_imported_for_a_list(tmp_path, monkeypatch):
    for name in ("datasets", "pandas", "pyarrow"):
        monkeypatch.delitem(sys.modules, name)
    given.problems(ROWS, tmp_path)
    assert not {"datasets", "pandas"} & sys.modules.keys()
