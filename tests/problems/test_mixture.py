"""Several sources in one run: each gives the part of the rows that its weight says, in an order of its fields alone."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.problems.load import ProblemSet, load_problems
from trd_ray.problems.mixture import order_of, shares
from trd_ray.problems.order import PERIOD, Order, _turns
from trd_ray.verify.code.tests import Tests


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(sources: list[dict], **keys) -> config.Recipe:
    named = [source["teacher"] for source in sources if "teacher" in source]
    teachers = {name: {"mode": "opsd"} for name in named}
    return config.from_tree(
        {"teachers": teachers, "rollouts_per_step": 4, "data": {"sources": sources} | keys.pop("data", {})} | keys
    )


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Three sources: mathematics under other names, mathematics, code."""
    cases = {"inputs": ["1\n"], "outputs": ["2\n"]}
    return {
        "renamed": jsonl(tmp_path / "a.jsonl", [{"q": f"{i}?", "a": i, "id": i, "hard": True} for i in range(3)]),
        "plain": jsonl(tmp_path / "b.jsonl", [{"problem": f"{i}?", "answer": i, "id": i} for i in range(5)]),
        "code": jsonl(tmp_path / "c.jsonl", [{"problem": f"Add {i}.", "tests": cases} for i in range(2)]),
    }


def three(files: dict[str, str], **data) -> list[dict]:
    return [
        {"name": "renamed", "path": files["renamed"], "columns": {"problem": "q", "answer": "a", "problem_id": "id"}},
        {"name": "plain", "path": files["plain"]},
        {"name": "code", "path": files["code"], "teacher": "coder"},
    ]


def load(r: config.Recipe) -> ProblemSet:
    return load_problems(r.data, r.verify)


def test_the_problems_of_all_sources_are_one_table_whose_rows_name_their_source(files):
    verify = {"functions": {"math": {"function": "math"}}, "by": "hard"}
    found = load(recipe(three(files), verify=verify))
    rows = found.table.to_pylist()
    assert Counter(row["source"] for row in rows) == {"renamed": 3, "plain": 5, "code": 2}
    assert [row["problem_id"] for row in rows[:3]] == ["renamed/0", "renamed/1", "renamed/2"]
    assert {row["problem_id"].split("/")[0] for row in rows} == {"renamed", "plain", "code"}
    assert [row["teacher"] for row in rows] == [None] * 8 + ["coder"] * 2
    assert json.loads(rows[0]["extra"]) == {"a": 0, "id": 0, "hard": True}
    packed = rows[-1]["tests"]
    assert Tests.unpack(packed).outputs == ["2\n"]
    assert found.spool is not None  # the shelf finds the tests of every source in one file
    places = found.spool.places(found.table["problem_id"].to_pylist())
    with open(found.spool.path, "rb") as file:
        file.seek(int(places[-1][0]))
        assert file.read(int(places[-1][1])) == packed
    assert not places[:8, 1].any()


def test_columns_of_data_fill_in_what_a_source_leaves_out_and_has(files):
    sources = three(files)
    sources[0].pop("columns")
    found = load(recipe(sources, data={"columns": {"problem": "q", "answer": "a"}}))
    assert found.table["answer"].to_pylist()[:3] == ["0", "1", "2"]


def test_the_limit_and_the_notes_of_a_source_are_its_own(files, tmp_path):
    sources = three(files)
    sources[1]["limit"] = 2
    sources[2] = {"name": "talk", "path": jsonl(tmp_path / "d.jsonl", [{"prompt": "2+2?", "answer": "4"}])}
    found = load(recipe(sources))
    assert Counter(found.table["source"].to_pylist()) == {"renamed": 3, "plain": 2, "talk": 1}
    assert [note for note in found.notes if "TRL" in note][0].startswith(str(tmp_path / "d.jsonl"))


def test_what_is_left_out_of_a_source_is_named_by_its_new_id(files, tmp_path):
    rows = [{"problem": "a?", "answer": "1", "reference": "r", "id": 7}, {"problem": "b?", "answer": "1", "id": 8}]
    sources = [{"name": "some", "path": jsonl(tmp_path / "r.jsonl", rows), "columns": {"problem_id": "id"}}]
    found = load(recipe(sources, data={"without_reference": "drop"}))
    assert found.table["problem_id"].to_pylist() == ["some/7"]
    assert [one.problem_id for one in found.set_aside] == ["some/8"]


def test_rows_need_answers_where_their_own_source_is_judged_by_what_is_built_in(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"problem": "Write a poem.", "level": 1}])
    (tmp_path / "score.py").write_text("def f(completion, level): return level\n")
    functions = {"functions": {"mine": {"function": f"{tmp_path}/score.py:f"}}}
    mine = {"name": "mine", "path": path, "verify": "mine"}
    [row] = load(recipe([mine], verify=functions)).table.to_pylist()
    assert row["answer"] == "" and json.loads(row["extra"]) == {"level": 1}
    for other in ({"verify": "math"}, {}):  # without a name it is maths, too
        with pytest.raises(
            UserError, match=r"has no column 'answer'.*set data\.sources\[maths\]\.columns\.answer=NAME"
        ):
            load(recipe([mine, {"name": "maths", "path": path} | other], verify=functions))


def test_faults_of_all_sources_are_told_at_once_under_their_names(files):
    sources = [three(files)[0] | {"columns": {"problem": "qq"}}, three(files)[1] | {"path": "none.jsonl"}]
    with pytest.raises(UserError) as refused:
        load(recipe(sources))
    first, second = refused.value.sentences
    assert "data.sources[renamed].columns.problem names the column 'qq'" in first and "did you mean q?" in first
    assert "there is no data file none.jsonl: set data.sources[plain].path" in second


# The order


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (3.0, 1.0, 1.0), (0.9, 0.05, 0.03, 0.02), (1.0, 1e-9)])
def test_every_stretch_of_a_run_holds_each_source_by_its_weight(weights):
    sizes = tuple(range(3, 3 + len(weights)))
    order = Order(sum(sizes), 5, 100, steps=250, sources=sizes, weights=weights)
    starts = np.cumsum((0, *sizes))
    numbers = np.array([row["problem_number"] for row in order.rows(0, order.length.rows)])
    source = np.searchsorted(starts, numbers, side="right") - 1
    for k, weight in enumerate(weights):
        met = np.cumsum(source == k)
        expected = np.arange(1, len(met) + 1) * max(weight / sum(weights), 1 / PERIOD)
        assert np.abs(met - expected).max() <= len(weights)
    assert order.rows_of_sources() == np.bincount(source, minlength=len(weights)).tolist()


def test_each_source_is_met_in_epochs_of_its_own_each_in_another_order():
    order = Order(7, 3, 4, samples_per_problem=2, steps=60, sources=(4, 3), weights=(2.0, 1.0))
    rows = list(order.rows(0, order.length.rows))
    for first, size in ((0, 4), (4, 3)):
        own = [row for row in rows if first <= row["problem_number"] < first + size]
        epochs = [[row["problem_number"] for row in own[i : i + 2 * size]] for i in range(0, len(own), 2 * size)]
        whole = [epoch for epoch in epochs if len(epoch) == 2 * size]
        assert len(whole) > 5 and all(Counter(one) == dict.fromkeys(range(first, first + size), 2) for one in whole)
        assert len({tuple(one) for one in whole}) > 1
        assert [row["epoch"] for row in own] == [i // (2 * size) for i in range(len(own))]


def test_any_range_of_a_mixed_order_is_that_of_the_whole_and_a_copy_of_the_order_gives_it_too():
    order = Order(9, 7, 4, 2, steps=12, sources=(5, 4), weights=(0.3, 0.7))
    whole = list(order.rows(0, 48))
    for first in range(0, 50, 3):
        assert list(order.rows(first, first + 5)) == whole[first : first + 5]
    assert list(pickle.loads(pickle.dumps(order)).rows(10, 20)) == whole[10:20]
    late = Order(9, 7, 4, 1, steps=10**6, sources=(5, 4), weights=(0.3, 0.7))
    assert [row["row"] for row in late.rows(3_999_998, 4_000_000)] == [3_999_998, 3_999_999]


def test_each_source_of_many_is_ranked_once_an_epoch(monkeypatch):
    ranked = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda *args, **keys: ranked.append(1) or argsort(*args, **keys))
    many = Order(100 * 50, seed=11, rollouts_per_step=100, steps=4, sources=(50,) * 100, weights=(1.0,) * 100)
    assert len(list(many.rows(0, 400))) == 400
    assert len(ranked) == 100


def test_a_mixed_order_never_changes_between_versions():
    # Written down once: a run begun with one version must be resumed with the next.
    order = Order(7, 0, 4, steps=3, sources=(4, 3), weights=(2.0, 1.0))
    assert [row["problem_number"] for row in order.rows(0, 12)] == [3, 5, 1, 0, 4, 2, 2, 6, 1, 0, 5, 3]
    assert _turns((0.5, 0.25, 0.25)).source[:8].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


def test_without_weights_a_pass_meets_every_problem_of_every_source_once(files):
    r = recipe(three(files), rollouts_per_step=5)
    problems = load(r).table
    order = order_of(r, problems)
    assert (order.sources, order.weights) == ((), ())
    assert sorted(row["problem_number"] for row in order.rows(0, 10)) == list(range(10))
    assert shares(r, problems) == (
        "sources: renamed 3 problems, 30.0% of the rows (1 pass); plain 5 problems, 50.0% of the rows (1 pass); "
        "code 2 problems, 20.0% of the rows (1 pass)"
    )


def test_the_dry_run_s_line_says_problems_shares_and_passes(files):
    weighted = [one | {"weight": weight} for one, weight in zip(three(files), (1, 2, 1), strict=True)]
    r = recipe(weighted, steps=10)
    assert shares(r, load(r).table) == (
        "sources: renamed 3 problems, 25.0% of the rows (3.3 passes); plain 5 problems, 50.0% of the rows (4 passes); "
        "code 2 problems, 25.0% of the rows (5 passes)"
    )


def test_a_source_of_which_nothing_is_left_is_named(files):
    r = recipe(three(files))
    problems = load(r).table.slice(3)  # as if data.too_long=drop had left out the first
    with pytest.raises(UserError, match="no problem of the source renamed is left"):
        order_of(r, problems)
