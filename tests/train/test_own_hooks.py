"""The user's own code in the driver: what it is told, what it adds, and that nothing it does ends a run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trd_ray.config import from_tree
from trd_ray.errors import RunFailed, UserError
from trd_ray.own_code import OUT_OF_FILES
from trd_ray.rows import ROW, to_table
from trd_ray.score import stats
from trd_ray.session.inputs import _require_best
from trd_ray.session.stop import Stopped, StopSignals
from trd_ray.train.own_hooks import Hooks

SOURCE = """
SEEN = []

def measure(rows):
    return {"length": sum(len(row["y_o"]["text"]) for row in rows) / len(rows), "none": None}

def raises(rows):
    return rows[0]["no such column"]

def wrong(rows):
    return {"a\\nb": 1}

class Watch:
    def on_step(self, step, metrics, rows):
        SEEN.append(("step", step, metrics["loss"], [row["problem_id"] for row in rows]))
        metrics["loss"] = rows[0]["problem"] = None
        return "stop" if step == 3 else None

    def on_evaluation(self, name, step, scores):
        SEEN.append((name, step, scores["avg@1"]))

    def on_checkpoint(self, step, folder):
        SEEN.append((step, folder.name))

    def on_end(self, how, said):
        SEEN.append((how, said))

class Breaks:
    def on_step(self, step, metrics, rows):
        raise SystemExit("I leave")

class Deaf:
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    yield file
    for name in [one for one in sys.modules if one.startswith(OUT_OF_FILES)]:
        del sys.modules[name]


@pytest.fixture
def session(tmp_path) -> Any:
    """The parts of a session that own code touches."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    warned: dict[str, str] = {}
    return SimpleNamespace(
        stop=StopSignals(), directory=SimpleNamespace(path=tmp_path / "run"), warn=warned.update, warned=warned
    )


def seen() -> list:
    [module] = [module for name, module in sys.modules.items() if name.startswith(f"{OUT_OF_FILES}mine_")]
    return module.SEEN


def table(*texts: str) -> pa.Table:
    rows = [
        {
            "problem_id": f"p{i}", "problem": "?", "answer": "", "reference": "", "row": i, "step": 0, "epoch": 0,
            "sample_index": 0, "seed": 0, "y_o": {"ids": [1, 2], "text": text, "passed": True}, "student_ids": [1],
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return to_table(rows)


def hooks(own: Path, function: str | None = None, *callbacks: str) -> Hooks:
    named = f"{own}:{function}" if function else None
    return Hooks.of(from_tree({"metrics": {"function": named}, "callbacks": [f"{own}:{c}" for c in callbacks]}))


def score(name: str) -> stats.Score:
    return stats.score([stats.Answer("p", True, 3, False, True)], name=name, step=2, version=2, resamples=100, seed=0)


def test_a_callback_is_told_of_everything_in_order_and_cannot_change_the_run(own, session):
    h = hooks(own, None, "Watch")
    rows, metrics = table("abc"), {"loss": 0.5}
    with h.during(session):
        h.evaluation(score("base"))
        h.evaluation(score("base"), of="old")
        h.step(1, metrics, rows)
        h.checkpoint(1, Path("step-000001"))
    expected = [("base", 2, 1.0), ("old/base", 2, 1.0), ("step", 1, 0.5, ["p0"]), (1, "step-000001"), ("done", "")]
    assert seen() == expected and metrics == {"loss": 0.5} and session.warned == {}
    assert rows["problem"].to_pylist() == ["?"]


def test_a_metric_function_adds_numbers_of_a_group_of_its_own(own, session):
    h = hooks(own, "measure")
    with h.during(session):
        assert h.measured(table("abc", "abcde")) == {"own/length": 4.0}


def test_rows_have_texts_and_verdicts_and_no_token_ids(own, session):
    rows: list = []
    h = Hooks(lambda given: rows.extend(given))
    with h.during(session):
        h.measured(table("abc"))
    [row] = rows
    assert row["y_o"]["text"] == "abc" and row["y_o"]["passed"] is True and row["y_r"] is None
    assert not {"student_ids", "response_ids"} & row.keys() and not {"ids", "logprobs"} & row["y_o"].keys()
    assert row.keys() <= set(ROW.names)


def test_numbers_of_other_libraries_are_numbers(session):
    h = Hooks(lambda rows: {"a": np.float32(0.5), "b": True, "pass@1/hard": 3})
    with h.during(session):
        assert h.measured(table("")) == {"own/a": 0.5, "own/b": 1.0, "own/pass@1/hard": 3.0}


@pytest.mark.parametrize("function", ["raises", "wrong"])
def test_a_metric_function_that_fails_is_one_warning_and_a_trace(own, session, function):
    h = hooks(own, function)
    with h.during(session):
        assert [h.measured(table("abc")) for _ in range(3)] == [{}, {}, {}]
    [said] = session.warned.values()
    assert said.startswith("metrics.function failed (") and said.endswith("the trace is in logs/own-code.txt")
    assert (session.directory.path / "logs" / "own-code.txt").read_text().count("Traceback") == 1


def test_a_callback_that_fails_or_exits_ends_nothing_and_the_others_are_told(own, session):
    h = hooks(own, None, "Breaks", "Watch")
    with h.during(session):
        h.step(1, {"loss": 1.0}, table("a"))
        h.step(2, {"loss": 2.0}, table("a"))
    [said] = session.warned.values()
    assert "mine.py:Breaks failed (SystemExit: I leave), and the run goes on without it" in said
    assert [one[1] for one in seen() if one[0] == "step"] == [1, 2]


def test_a_callback_that_says_stop_stops_the_run_where_it_may_stop(own, session):
    h = hooks(own, None, "Watch")
    with pytest.raises(Stopped, match="the callback .*mine.py:Watch"), h.during(session):
        h.step(2, {"loss": 1.0}, table("a"))
        session.stop.check()
        h.step(3, {"loss": 1.0}, table("a"))
        session.stop.check()
    assert seen()[-1][0] == "stopped"


def test_the_end_is_told_with_its_reason_unless_it_is_at_once(own, session):
    h = hooks(own, None, "Watch")
    with pytest.raises(RunFailed), h.during(session):
        raise RunFailed("an engine broke")
    assert seen() == [("failed", "an engine broke")]
    session.stop.hurried = True
    with pytest.raises(KeyboardInterrupt), h.during(session):
        raise KeyboardInterrupt
    assert len(seen()) == 1


@pytest.mark.parametrize(
    "function, callbacks, said",
    [
        ("Watch", (), "is no function: name one that takes a step's rows"),
        ("SEEN", (), "is no function"),
        (None, ("Deaf",), "has none of the methods on_step, on_evaluation, on_checkpoint, on_end"),
        (None, ("Wach",), "did you mean Watch"),
    ],
)
def test_code_that_cannot_be_called_is_refused_before_anything_starts(own, function, callbacks, said):
    with pytest.raises(UserError, match=said):
        hooks(own, function, *callbacks)


def test_without_own_code_nothing_is_read(session):
    h = Hooks.of(from_tree({}))
    nothing: Any = None
    with h.during(session):
        h.step(1, nothing, nothing)
        assert h.measured(nothing) == {}


def test_the_best_checkpoint_may_be_by_a_metric_of_one_s_own_where_there_is_a_function():
    best = {"checkpoint": {"best": "own/words"}}
    _require_best(from_tree(best | {"metrics": {"function": "my.py:words"}}))
    with pytest.raises(UserError, match="checkpoint.best=own/words names nothing that a step measures"):
        _require_best(from_tree(best))
