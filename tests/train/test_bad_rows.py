"""Rows that could not be made or judged are named and counted over all starts of a run, and too many end it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from trd_ray import config
from trd_ray.errors import RunFailed
from trd_ray.record.directory import RunDirectory
from trd_ray.record.events import last_events
from trd_ray.rows import to_table
from trd_ray.train.bad_rows import BadRows


def table(*faults: str | None) -> Any:
    plain = {"problem": "?", "answer": "5", "reference": "", "step": 2, "epoch": 0, "sample_index": 0, "seed": 0}
    return to_table([plain | {"problem_id": f"p{i}", "row": i, "fault": fault} for i, fault in enumerate(faults)])


@pytest.fixture
def session(tmp_path) -> Any:
    recipe = config.from_tree({"data": {"max_bad_rows": 3}})
    directory = RunDirectory.create(tmp_path / "run", recipe)
    lines = [{"step": 1, "dropped/bad row": 1}, {"step": 2}, {"step": 3, "dropped/bad row": 9}]
    (directory.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    warned: list[dict] = []
    inputs = SimpleNamespace(problems="some")
    yield SimpleNamespace(recipe=recipe, directory=directory, inputs=inputs, warn=warned.append, warned=warned)
    directory.release()


def test_a_step_without_bad_rows_is_said_nothing_of(session):
    sound = table(None, None)
    assert BadRows(session, done=2).checked(sound) is sound and not session.warned
    assert last_events(session.directory.path) == []


def test_each_is_named_and_the_run_ends_when_the_budget_is_spent_whichever_start_spent_it(session):
    bad_rows = BadRows(session, done=2)  # step 3 is done again
    assert bad_rows.count == 1
    rows = table(None, "y_o: not judged (x)", "y_o: the engine refused the request (y)")
    assert bad_rows.checked(rows) is rows and bad_rows.count == 3
    assert [event["row"] for event in last_events(session.directory.path)] == [1, 2]
    assert "row 1 of problem p1: y_o: not judged (x)" in session.warned[0]["bad rows"]
    with pytest.raises(RunFailed, match="^4 rows of this run .*data.max_bad_rows=3, such as row 0 of problem p0: why"):
        bad_rows.checked(table("why"))


def test_rows_of_a_corpus_were_counted_when_it_was_made(session):
    session.inputs.problems = None
    BadRows(session, done=2).checked(table(*["why"] * 50))
    assert not session.warned
