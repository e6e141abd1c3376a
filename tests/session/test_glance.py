"""The first look at the verifier: every training run warns of what is surely wrong, and is not delayed by it."""

import json
import logging
import time

import pyarrow as pa
import pytest

from trd_ray import config
from trd_ray.problems.columns import SCHEMA
from trd_ray.session import glance
from trd_ray.session.inputs import prepare
from trd_ray.verify import Verdict

RECIPE = config.load("miniature_opsd")


def problems(many: int = 6) -> pa.Table:
    rows = [
        {"problem_id": f"p{i}", "problem": f"{i}+1", "answer": str(i + 1), "reference": f"\\boxed{{{i + 1}}}"}
        for i in range(many)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def verdict(passed: bool) -> Verdict:
    return Verdict(passed, float(passed), "", "", 0.0)


def test_a_sound_recipe_is_told_nothing():
    assert glance.first_look(RECIPE, problems()) == []


def test_a_verifier_that_passes_everything_or_nothing_is_named():
    for passed, said in ((True, "passes everything"), (False, "passes nothing")):
        [sentence] = glance.first_look(RECIPE, problems(), lambda text, problem, passed=passed: verdict(passed))
        assert said in sentence


def test_one_wrong_row_is_no_warning():
    assert (
        glance.first_look(RECIPE, problems(), lambda text, p: verdict(p["answer"] in text and p["answer"] != "2")) == []
    )


def test_each_of_two_sources_is_looked_at():
    met = set()

    def notes(text: str, problem: dict) -> Verdict:
        met.add(problem["source"])
        return verdict(problem["answer"] in text)

    table = problems(40)
    sources = pa.array(["a"] * 20 + ["b"] * 20)
    glance.first_look(RECIPE, table.set_column(table.column_names.index("source"), "source", sources), notes)
    assert met == {"a", "b"}


def test_what_a_judge_alone_says_is_left_out_and_what_stands_beside_it_is_looked_at():
    judge = ["judge.path=miniature:student"]
    alone = config.load("miniature_opsd", [*judge, "verify.function=judge"])
    assert glance.first_look(alone, problems(), lambda text, problem: pytest.fail("it is asked")) == []
    functions = "verify.functions={m: {function: math}, j: {function: judge}}"
    both = config.load("miniature_opsd", [*judge, functions])
    assert glance.first_look(both, problems()) == []
    wrong = pa.Table.from_pylist([row | {"answer": "77"} for row in problems().to_pylist()], schema=SCHEMA)
    assert glance.first_look(both, wrong)


def test_a_verifier_that_does_not_answer_in_time_delays_nothing(monkeypatch):
    monkeypatch.setattr(glance, "LOOK_S", 0.1)

    def hangs(text: str, problem: dict) -> Verdict:
        time.sleep(2)
        return verdict(True)

    start = time.monotonic()
    assert glance.first_look(RECIPE, problems(), hangs) == []
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("column, warned", [("answer", False), ("wrong", True)])
def test_a_run_warns_before_it_starts(tmp_path, caplog, column, warned):
    rows = [row | {"wrong": str(i + 2)} for i, row in enumerate(problems().drop_columns(["tests"]).to_pylist())]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.path={tmp_path / 'data.jsonl'}", f"data.columns.answer={column}", "evaluation.path=null"]
    machine = ["cluster.memory_gib=64", "cluster.local_cpus=16"]
    with caplog.at_level(logging.WARNING):
        prepare(config.load("miniature_opsd", [*data, *machine]), "train")
    said = [record.getMessage() for record in caplog.records if "trd check" in record.getMessage()]
    assert bool(said) == warned
    assert not warned or "4 of 4 references state another answer than their row" in said[0]
