"""Rows flow by themselves, and each comes once, also when the stage dies; engines follow a script, the rest is real."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from scripted import Script, scripted_pool, stage_spec
from trd_ray import miniature
from trd_ray.config import VerifyConfig
from trd_ray.problems.order import Order, seed_of_row
from trd_ray.rows import PROBLEM
from trd_ray.stream import verifying
from trd_ray.stream.feed import Feed
from trd_ray.stream.graph import arriving, graph
from trd_ray.stream.reviewed import settled_rows
from trd_ray.stream.verifying import Verifying
from trd_ray.verify import Verdict
from trd_ray.views import load_views

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def problems() -> pa.Table:
    found = pa.Table.from_pylist(miniature.problems("test")[:8], schema=pa.schema(PROBLEM))
    return found.drop_columns(["tests", "extra"])


def feed_of(pool, problems, order, **over) -> Feed:
    spec = stage_spec(pool, order, problems, **over)
    blocks = arriving(graph(spec, start_step=0))
    return Feed(blocks, rows_per_step=order.rollouts_per_step, stall_timeout_s=240, problems=problems)


def test_a_rollout_is_refined_while_its_neighbour_is_still_sampled(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1)
    first, second = seed_of_row(0, 0), seed_of_row(0, 1)
    pool = scripted_pool("flows", Script(waits_for={first: second ^ 1}), tmp_path)
    rows = feed_of(pool, problems, order, stream={"rows_per_block": 1}).take(0, lambda: None)
    assert rows["row"].to_pylist() == [0, 1, 2, 3]
    by_number = problems.to_pylist()
    for row, ordered in zip(rows.to_pylist(), order.rows(0, 4), strict=True):
        problem = by_number[ordered["problem_number"]]
        assert {name: row[name] for name in problem} == problem
        assert row["y_o"]["passed"] is not None and row["y_r"]["passed"] is not None and row["train"]


def test_a_row_that_an_engine_refuses_comes_with_its_fault_and_its_neighbours_as_ever(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1)
    refused = {seed_of_row(0, 1), seed_of_row(0, 2) ^ 1}  # y_o of row 1, y_r of row 2
    pool = scripted_pool("refuses", Script(refuses=refused), tmp_path)
    rows = feed_of(pool, problems, order).take(0, lambda: None).to_pylist()
    assert [row["train"] for row in rows] == [True, False, False, True]
    assert [bool(row["fault"]) for row in rows] == [False, True, True, False]
    assert rows[1]["fault"].startswith("y_o: the engine refused the request") and rows[1]["y_o"] is None
    assert rows[2]["fault"].startswith("y_r: ") and rows[2]["y_o"]["passed"] is not None and rows[2]["y_r"] is None


def answered(problems: pa.Table, answers: list[str]) -> pa.Table:
    return problems.set_column(problems.column_names.index("answer"), "answer", pa.array(answers))


def test_with_repair_only_attempts_that_failed_are_refined(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=8, steps=1, shuffle=False)
    known = answered(problems, ["1", "2"] * 4)  # every answer is 1
    pool = scripted_pool("repairs", Script(), tmp_path)
    rows = feed_of(pool, known, order, train={"trajectory": "repair"}).take(0, lambda: None).to_pylist()
    assert [row["y_o"]["passed"] for row in rows] == [True, False] * 4
    assert [row["y_r"] is None for row in rows] == [True, False] * 4
    assert [(row["trajectory"], row["train"]) for row in rows] == [("y_o", True), ("y_r", True)] * 4
    assert [row["refine_tokens"] for row in rows] == [None, 4] * 4


def test_a_solution_may_ignore_the_attempt_which_stands_in_no_prompt_then(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1, shuffle=False)
    pool = scripted_pool("ignores", Script(), tmp_path)
    fresh = {"from": "problem", "max_response_tokens": 32, "max_prompt_tokens": 600}
    rows = feed_of(pool, problems, order, refiner=fresh).take(0, lambda: None).to_pylist()
    spec = stage_spec(pool, order, problems)
    [views] = load_views(spec.recipe, spec.student_path, spec.teacher_path).values()
    for row in rows:
        asked = views.vanilla(row["problem"], row["reference"]).ids
        assert row["refine_prompt_ids"] == row["teacher_ids"] == asked
        assert row["y_r"]["ids"] == row["response_ids"] and row["y_o"]["ids"]


def test_a_relay_keeps_an_attempt_that_passes_and_never_breaks_and_goes_on_from_another(
    ray_cluster, problems, tmp_path
):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1, shuffle=False)
    known = answered(problems, ["1", "2"] * 4)  # every answer is 1
    pool = scripted_pool("relays", Script(), tmp_path)
    relay = {"from": "relay", "max_response_tokens": 32, "max_prompt_tokens": 600}
    rows = feed_of(pool, known, order, refiner=relay).take(0, lambda: None).to_pylist()
    for row, passes in zip(rows, [True, False] * 2, strict=True):
        # The script finds each token of a prompt equally likely, so an attempt that fails is cut before its first one.
        assert (row["refine_kept_tokens"], row["refine_tokens"]) == ((4, 0) if passes else (0, 4))
        assert row["refine_scored_tokens"] == len(row["y_o"]["ids"]) == 4
        assert row["y_r"]["passed"] == passes and len(row["y_r"]["logprobs"]) == 4
        assert row["teacher_ids"] == row["refine_prompt_ids"]
        if passes:
            assert (row["y_r"]["ids"], row["y_r"]["text"]) == (row["y_o"]["ids"], row["y_o"]["text"])


def test_the_nearest_refinement_is_the_one_that_the_student_s_engines_find_most_likely(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1, shuffle=False)
    known = answered(problems, ["1", "2"] * 4)
    pool = scripted_pool("scores", Script(), tmp_path)
    nearest = {"n": 3, "select": "nearest", "max_response_tokens": 32, "max_prompt_tokens": 600}
    rows = feed_of(pool, known, order, refiner=nearest).take(0, lambda: None).to_pylist()
    for row, passes in zip(rows, [True, False] * 2, strict=True):
        assert (row["refine_candidates"], row["refine_candidates_passed"]) == (3, 3 * passes)
        assert row["refine_tokens"] == 4 + 5 + 6
        scored = len(row["student_prompt_ids"]) + 6
        assert row["refine_student_logprob"] == (pytest.approx(-1 / scored) if passes else None)
        assert (len(row["y_r"]["ids"]), row["refine_scored_tokens"]) == ((6, 15) if passes else (4, None))
    near = feed_of(pool, known, order, refiner=nearest | {"max_edited_share": 0.2}).take(0, lambda: None).to_pylist()
    assert [len(row["y_r"]["ids"]) for row in near] == [5, 4, 5, 4]  # y_o has the 4 tokens with which all of them begin
    assert [row["refine_edited_share"] for row in near] == [0.2, 0.0] * 2


def test_where_a_person_judges_a_row_is_refined_and_brings_all_that_a_choice_will_need(ray_cluster, problems, tmp_path):
    order = Order(8, seed=0, rollouts_per_step=4, steps=1, shuffle=False)
    pool = scripted_pool("waits", Script(), tmp_path)
    nearest = {"n": 3, "select": "nearest", "max_response_tokens": 32, "max_prompt_tokens": 600}
    review = {"verify": {"function": "review", "cpus": 0.25}, "refiner": nearest, "train": {"trajectory": "repair"}}
    table = feed_of(pool, problems, order, **review).take(0, lambda: None)
    for row in table.to_pylist():
        assert row["fault"] is None and row["y_o"]["passed"] is None and row["review_awaited"]
        candidates = row["review_candidates"]
        assert row["y_r"] is None and [len(one["ids"]) for one in candidates] == [4, 5, 6]
        assert all(one["awaited"] and one["student_logprob"] is not None for one in candidates)
        assert (row["refine_tokens"], row["refine_scored_tokens"]) == (15, 15)
    recipe = stage_spec(pool, order, problems, **review).recipe
    assert settled_rows(table, recipe, {})["review_waits"].to_pylist() == [4] * 4


def dying(marks: str) -> Any:
    """A task of Ray's in which each text passes, but does to its process what it says."""

    def verdicts(config: str, asked: list, *tests: Any) -> list:
        def judged(text: str) -> tuple[float, Verdict]:
            met = Path(marks, text)
            if text == "dies" or (text in ("dies once", "stops once") and not met.exists()):
                met.touch()
                os.kill(os.getpid(), signal.SIGSTOP if text == "stops once" else signal.SIGKILL)
            return 0.0, Verdict(True, 1.0, text, "", 0.0)

        return [[judged(text) for text in texts] for _, texts, _ in asked]

    return ray.remote(verdicts).options(num_cpus=0.25, max_retries=0)


def test_a_verifier_s_process_may_die_or_be_stopped_and_each_text_gets_its_own_verdict(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(verifying, "patience_s", lambda config, asked: 5.0)  # then a stopped one is ended

    async def ask(*texts: list[str]) -> list[list[str]]:
        judges = Verifying(VerifyConfig(), 1, dying(str(tmp_path)))
        found = await asyncio.gather(*(judges({}, one) for one in texts))
        return [[verdict.detail for _, verdict in one] for one in found]

    dead = "not judged (the process that verifies ended 2 times over it)"
    asked = ask(["fine", "dies once"], ["dies"], ["stops once"], ["fine too"])
    assert asyncio.run(asked) == [["", ""], [dead], [""], [""]]


def test_the_stage_may_die_at_every_point_of_a_step_and_each_row_comes_once(ray_cluster, problems, tmp_path):
    rows, steps = 4, 9
    asked = 2 * rows  # requests of a step, of which the n-th kills the stage in the n-th step
    order = Order(8, seed=0, rollouts_per_step=rows, steps=steps)
    script = Script(kill_stage_at={step * asked + step + 1 for step in range(asked)})
    pool = scripted_pool("dies", script, tmp_path)
    feed = feed_of(pool, problems, order, stream={"rows_per_block": 1})
    for step in range(steps):
        assert feed.take(step, lambda: None)["row"].to_pylist() == list(range(step * rows, step * rows + rows))
    assert not feed.waiting
