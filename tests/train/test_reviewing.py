"""A corpus that a person judges: repeated, `trd refine` reads verdicts back without an engine, and it then trains."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest

from trd_ray.config import load
from trd_ray.engine.actor import Generation
from trd_ray.errors import UserError
from trd_ray.record.directory import RunDirectory
from trd_ray.record.ledger import row_metrics
from trd_ray.rows import light, to_table
from trd_ray.session.beginning import Beginning
from trd_ray.session.inputs import prepare
from trd_ray.stream.choosing import RefineCandidate
from trd_ray.stream.examples import WAITS, rebuilt
from trd_ray.stream.feed import corpus_blocks
from trd_ray.stream.held import require_held
from trd_ray.stream.stages import record, record_candidates, record_verdict
from trd_ray.train.command import run
from trd_ray.train.reviewing import Reviewing
from trd_ray.verify import verifier
from trd_ray.verify.review.given_verdicts import PersonsVerdict, append_given, key_of, read_given
from trd_ray.verify.review.review_queue import given_place, read_queue
from trd_ray.views import load_views

STEPS, ROWS = 2, 4
IDS = np.array([5, 6, 7], np.int32)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    def no_nodes(self: Beginning, *inputs: object, wait_s: float = 0.0) -> None:
        raise UserError("engines would be started")

    monkeypatch.setattr(Beginning, "require", no_nodes)
    keys = ["cluster.memory_gib=64", "evaluation.path=null", f"steps={STEPS}", f"rollouts_per_step={ROWS}"]
    review = ["verify.function=review", "prompts.task=math", "refiner.n=2", "refiner.select=first_passed"]
    return load("miniature_opsd", [f"run_dir={tmp_path / 'corpus'}", *keys, *review])


def generation(text: str) -> Generation:
    return Generation(IDS, text, "stop", np.zeros(3, np.float32), 0, "e", 0.0, 1.0)


def sampled(recipe, step: int) -> pa.Table:
    """The rows of a step, counted from 0, as the feed hands them out: two refinements of each attempt."""
    judge = verifier(recipe.verify)
    made = []
    for i in range(ROWS):
        number = step * ROWS + i
        row = {"row": number, "step": step, "epoch": 0, "sample_index": 0, "seed": 1, "student_prompt_ids": IDS}
        row |= {"problem_id": f"p{number}", "problem": "6+1", "answer": "7", "reference": "6+1=7; \\boxed{7}"}
        row |= {"refine_prompt_ids": IDS, "refine_cut_tokens": 0}
        record(row, "y_o", generation(f"try {number}"))
        record_verdict(row, "y_o", judge(row["y_o"]["text"], row), 5.0)
        refinements = [generation(f"{name} {number}") for name in "ab"]
        verdicts = [(6.0, judge(one.text, row)) for one in refinements]
        record_candidates(row, refinements, verdicts, [RefineCandidate(3, None, 0.0)] * 2)
        made.append(row)
    return to_table(made)


def first_pass(recipe, steps: int = STEPS) -> Reviewing:
    """What the first `trd refine` leaves, step by step as its loop does, without engines."""
    directory = RunDirectory.create(recipe.directory, prepare(recipe, "refine").recipe)
    reviewing = Reviewing(directory, recipe)
    with open(directory.path / "metrics.jsonl", "w") as metrics:
        for step in range(steps):
            table = reviewing.of_step(sampled(recipe, step))
            directory.write_rows(step + 1, table)
            measured = {"step": step + 1} | row_metrics(light(table)) | {"own/x": 1.0}
            metrics.write(json.dumps(measured) + "\n")
            reviewing.queue(table)
    directory.release()
    return reviewing


def judge_all(recipe, said) -> None:
    for one in read_queue(recipe.directory).values():
        if (found := said(one)) is not None:
            append_given(given_place(recipe.directory), one.key, found)


def rows_of(recipe) -> list[dict]:
    return RunDirectory.open(recipe.directory).read_rows().to_table().to_pylist()


def test_every_response_is_queued_as_soon_as_its_step_is_written_and_the_end_says_how_to_judge(recipe):
    told = first_pass(recipe).told()
    waits = list(read_queue(recipe.directory).values())
    assert [one.response for one in waits[:4]] == ["try 0", "a 0", "b 0", "try 1"] and len(waits) == 24
    assert waits[0].reference == "6+1=7; \\boxed{7}" and waits[0].problem == "6+1" and waits[0].answer == "7"
    assert "24 responses wait for a person" in told and "and 8 rows of the corpus" in told
    assert f"trd review {recipe.directory}" in told and "verdicts.jsonl" in told and "\n" not in told
    [base] = {one["y_o"]["passed"] for one in rows_of(recipe)}
    assert base is None


def test_the_same_command_reads_verdicts_back_without_engines_and_the_corpus_is_complete(recipe, capsys):
    first_pass(recipe)

    def said(one):
        return PersonsVerdict(one.response.startswith("b") or one.response == "try 3", feedback="see line 2")

    judge_all(recipe, said)
    assert run(recipe, "refine") == 0  # without --resume
    out = capsys.readouterr().out
    assert "nothing is left to do" in out and "every response is judged, and the corpus" in out
    rows = rows_of(recipe)
    assert all(row["review_waits"] == 0 and row["y_r"]["text"] == f"b {row['row']}" for row in rows)
    assert all(row["y_r"]["passed"] and row["y_o"]["feedback"] == "see line 2" for row in rows)
    assert [row["y_o"]["passed"] for row in rows] == [number == 3 for number in range(8)]
    metrics = RunDirectory.open(recipe.directory).read_metrics()
    assert [m["y_o/passed"] for m in metrics] == [0.25, 0.0] and all(m["y_r/passed"] == 1.0 for m in metrics)
    assert all(m["own/x"] == 1.0 and m["tokens/refined"] == 24 for m in metrics)
    assert [m["step"] for m in metrics] == [1, 2] and [row["step"] for row in rows] == [1] * 4 + [2] * 4
    assert "100.0%" in (recipe.directory / "summary.md").read_text() and not read_queue(recipe.directory)
    assert "A corpus, not a training" in (recipe.directory / "report.html").read_text()


def test_what_still_waits_stays_queued_and_is_told_and_a_broken_line_is_named(recipe, capsys):
    first_pass(recipe)
    judge_all(recipe, lambda one: PersonsVerdict(True) if one.response in ("try 0", "a 0") else None)
    with open(given_place(recipe.directory), "a") as file:
        file.write("yes!\n")
    assert run(recipe, "refine", "required") == 0
    out = capsys.readouterr().out
    assert "line 3 of" in out and "21 responses wait for a person" in out and "and 7 rows of the corpus" in out
    assert rows_of(recipe)[0]["y_r"]["text"] == "a 0"  # b 0 was spared
    assert len(read_queue(recipe.directory)) == 21
    judge_all(recipe, lambda one: PersonsVerdict(not one.response.startswith("b")))
    append_given(given_place(recipe.directory), key_of("p0", "a 0"), PersonsVerdict())  # taken back
    assert run(recipe, "refine") == 0
    assert "2 responses wait for a person" in capsys.readouterr().out  # and b 0 was never judged
    assert {one.response for one in read_queue(recipe.directory).values()} == {"a 0", "b 0"}
    assert rows_of(recipe)[0]["y_r"] is None and rows_of(recipe)[1]["y_r"]["text"] == "a 1"


def test_a_lost_queue_is_made_again_and_reading_back_twice_changes_nothing(recipe):
    first_pass(recipe)
    judge_all(recipe, lambda one: PersonsVerdict(True) if one.response.startswith("try") else None)
    run(recipe, "refine")
    before = {file.name: file.read_bytes() for file in (recipe.directory / "rows").iterdir()}
    queue = read_queue(recipe.directory)
    (recipe.directory / "review" / "queue.jsonl").unlink()
    stamps = {file.name: file.stat().st_mtime_ns for file in (recipe.directory / "rows").iterdir()}
    run(recipe, "refine", "auto")
    assert read_queue(recipe.directory) == queue and len(queue) == 16
    assert {file.name: file.read_bytes() for file in (recipe.directory / "rows").iterdir()} == before
    assert {file.name: file.stat().st_mtime_ns for file in (recipe.directory / "rows").iterdir()} == stamps


def test_a_corpus_that_is_not_sampled_to_its_end_reads_what_it_has_and_then_needs_engines(recipe):
    first_pass(recipe, steps=1)
    judge_all(recipe, lambda one: PersonsVerdict(True))
    with pytest.raises(UserError, match="engines would be started"):
        run(recipe, "refine")  # the run goes on with step 2, so it looks for engines first


def test_a_verdict_that_was_there_before_a_step_is_in_its_rows_at_once(recipe):
    first_pass(recipe, steps=1)
    judge_all(recipe, lambda one: PersonsVerdict(True))
    same = read_given(given_place(recipe.directory)).by_key
    reviewing = Reviewing(RunDirectory.open(recipe.directory), recipe)
    assert set(reviewing.of_step(sampled(recipe, 0))["review_waits"].to_pylist()) == {0} and same
    assert set(reviewing.of_step(sampled(recipe, 1))["review_waits"].to_pylist()) == {2 + 1}


def test_another_recipe_is_refused_and_one_without_review_is_as_it_was(recipe, capsys):
    first_pass(recipe)
    other = recipe.model_copy(update={"seed": 7})
    with pytest.raises(UserError, match="seed=0"):
        run(other, "refine")
    plain = recipe.model_copy(update={"verify": recipe.verify.built_in()})
    with pytest.raises(UserError):
        run(plain, "refine")  # holds a run already
    reviewing = Reviewing(RunDirectory.open(recipe.directory), plain)
    table = sampled(plain.model_copy(update={"verify": recipe.verify}), 0)
    assert reviewing.of_step(table) is table and reviewing.told() == ""


def test_a_corpus_that_is_judged_trains_as_any_other_and_what_waits_does_not(recipe, caplog):
    first_pass(recipe)
    on_corpus = ["data.source=corpus", f"data.path={recipe.directory}", "rollouts_per_step=4", "steps=2"]
    train = load("miniature_opsd", ["cluster.memory_gib=64", "evaluation.path=null", *on_corpus])
    with pytest.raises(UserError, match="all 8 rows of the corpus .* wait for review.*trd review"):
        prepare(train)
    judge_all(recipe, lambda one: PersonsVerdict(True) if one.problem_id != "p5" else None)
    run(recipe, "refine")
    with caplog.at_level(logging.WARNING):
        require_held(train, 8)
    assert "1 of 8 rows of the corpus" in caplog.text and "do not train" in caplog.text
    assert prepare(train).total_steps == 2
    # The recipe that made it may train on it too: nobody judges while it trains.
    again = load(
        "miniature_opsd", ["cluster.memory_gib=64", "evaluation.path=null", "verify.function=review", *on_corpus]
    )
    inputs = prepare(again)
    views = load_views(inputs.recipe, inputs.student_path, inputs.teacher_path)
    tables = [
        rebuilt(block.rows, inputs.recipe, views)
        for block in corpus_blocks(recipe.directory, rows_per_step=4, start_step=0)
    ]
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["train"] for row in rows] == [row["row"] != 5 for row in rows]
    assert rows[5]["dropped_because"] == WAITS
    assert all(row["review_candidates"] is None for row in rows)  # the run that trains stores none of them
    assert all(row["response_ids"] == [5, 6, 7] and row["trajectory"] == "y_r" for row in rows if row["train"])
