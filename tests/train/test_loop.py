import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trd_ray.config import from_tree
from trd_ray.distill.batches import micro_batches, split
from trd_ray.distill.trainer import Learned
from trd_ray.lineage import START
from trd_ray.record.clock import Clock
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import row_metrics
from trd_ray.record.timeline import Timeline
from trd_ray.rows import light, to_table
from trd_ray.stream.examples import examples_of
from trd_ray.token_values import NONE
from trd_ray.train.loop import Training
from trd_ray.train.turns import Turn, Turns


def training(told: list[str], **parts: Any) -> Any:
    """The parts of a run that its end and its records use; each writes into `told` that it was asked."""

    def tells(what: str) -> Any:
        return lambda *_: told.append(what)

    made: Any = Training.__new__(Training)
    stop, display = SimpleNamespace(hurried=False), SimpleNamespace(step=tells("show"))
    made.session = SimpleNamespace(stop=stop, display=display, lender=None)
    made.directory = SimpleNamespace(write_rows=tells("rows"))
    made.trainer = SimpleNamespace(take_worked=list, stop=tells("stop the learner"))
    made.learner = SimpleNamespace(record=tells("learner"))
    made.session.followers = SimpleNamespace(recorded=lambda *_: None)
    made.session.room = SimpleNamespace(having=lambda _, write: write())
    made.rows_sha256 = START
    made.clock = SimpleNamespace(close=tells("timeline"), draw=tells("draw"))
    made.metrics = SimpleNamespace(close=tells("metrics"), log=tells("log"))
    made.feed = SimpleNamespace(close=tells("feed"))
    made.hooks = SimpleNamespace(measured=lambda _: {}, step=lambda *_: None)
    made.alarms = SimpleNamespace(step=lambda *_: {}, tell=tells("alarms"), close=lambda: None)
    made.recipe, made.done, made.recorded = None, 0, {}
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def test_every_part_is_closed_also_when_another_cannot_be():
    def broken() -> None:
        raise RuntimeError("broken")

    told: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        training(told, metrics=SimpleNamespace(close=broken)).close()
    assert told == ["feed", "timeline", "stop the learner"]


def test_a_step_whose_metrics_are_logged_is_recorded_whatever_comes_after_them():
    def full() -> None:
        raise OSError("no space left")

    told: list[str] = []
    made = training(told)
    made.alarms.tell = full
    with pytest.raises(OSError, match="no space left"):
        made.record(1, to_table([]), [], {"loss": 0.5})
    assert told == ["rows", "log", "learner", "show"] and (made.done, made.recorded) == (1, {"loss": 0.5})


def test_nothing_that_the_driver_does_with_a_step_makes_an_object_of_a_token(tmp_path):
    """A list of a step's 250,000 ids would take 2 MB for its pointers alone."""
    tokens = 4096
    ids = np.arange(tokens, dtype=np.int32) + 1000
    y = {"ids": ids, "logprobs": np.zeros(tokens, np.float32), "text": "x" * tokens, "start_s": 1.0, "seconds": 2.0}
    row = {"problem_id": "p", "problem": "?", "answer": "5", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    row |= {"step": 0, "student_prompt_ids": ids, "refine_prompt_ids": ids, "train": True, "trajectory": "y_r"}
    row |= {"y_o": y, "y_r": y, "student_ids": ids, "teacher_ids": ids, "response_ids": ids}
    table = to_table([row | {"row": i} for i in range(64)])
    directory = RunDirectory.create(tmp_path / "r", from_tree({"name": "r"}))
    clock = Clock(Timeline(tmp_path / "timeline.json"))
    clock.start()
    for name in ("wait", "train", "sync"):
        with clock.span(name):
            pass

    tracemalloc.start()
    rows = light(table)
    measured = row_metrics(rows, 0) | clock.seconds(rows)
    clock.draw(rows)
    [shares] = split(examples_of(table), updates=1, ranks=2)
    batches = micro_batches(shares, 4 * tokens, packed=True)
    directory.write_rows(1, table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    directory.release()

    assert measured["y_r/tokens_mean"] == tokens and sum(len(m) for rank in batches for m in rank) == 64
    assert peak < 1_000_000


@pytest.mark.parametrize("taken", [True, False], ids=["in turns", "apart"])
def test_engines_rest_from_the_probe_to_the_sync_of_a_step_and_serve_its_evaluation(tmp_path, taken):
    told: list[str] = []

    def tells(what: str, value: Any = None) -> Any:
        return lambda *_, **__: (told.append(what), value)[1]

    engines: Any = SimpleNamespace(
        rest=tells("rest"), wake_weights=tells("wake weights"), wake_keys=tells("wake keys"), wake_those_asleep=None
    )
    y = {"ids": [5], "logprobs": [-0.1], "text": "x", "start_s": 1.0, "seconds": 2.0, "version": 0, "tokens": 1}
    row = {"problem_id": "p", "problem": "?", "answer": "5", "reference": "", "epoch": 0, "sample_index": 0, "seed": 0}
    row |= {"step": 0, "row": 0, "student_prompt_ids": [1], "train": False, "trajectory": "y_r", "y_o": y, "y_r": y}
    made = training(told, clock=Clock(Timeline(tmp_path / "timeline.json")), corpus=False, after_step=lambda: None)
    made.turns = Turns(
        engines, tells("give"), tells("refresh"), made.clock.span, taken=taken, first=Turn.ENGINES
    )  # fmt: skip
    made.recipe = from_tree({"sync": {"probe_rows": 1}})
    made.session.pools = {"sampler": "a pool"}
    made.policy = SimpleNamespace(version=0, served=0, publish=tells("sync"))
    made.learner.logprobs, made.learner.step = tells("score", [[-0.1]]), tells("train", Learned({}, NONE))
    made.diagnosing = SimpleNamespace(due=lambda _: True, look=tells("diagnostics", {}), kept=lambda table, *_: table)
    made.learner.score = None
    made.evaluations = SimpleNamespace(if_due=tells("evaluate", {}))
    made.checkpoints = SimpleNamespace(if_due=tells("checkpoint"))
    made.take, made.state, made.record = tells("rows", to_table([row])), lambda _: {}, tells("record")
    made.total_steps = 1
    made.step(0)
    parts = ["rows", "rest", "score", "diagnostics", "train", "give", "wake weights", "sync", "wake keys", "evaluate"]
    of_turns = {"rest", "give", "wake weights", "wake keys"}
    expected = [*parts, "record", "checkpoint"]
    assert told == (expected if taken else [part for part in expected if part not in of_turns])
    drawn = {span.name for span in made.clock.spans}
    assert not drawn & {"rest", "wake"}, "they belong to the step, which is closed"
