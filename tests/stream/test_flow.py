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
from trd_ray.stream.verifying import Verifying
from trd_ray.verify import Verdict

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
