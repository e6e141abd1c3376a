"""Rows flow by themselves, and each comes once, also when the stage dies; engines follow a script, the rest is real."""

import pyarrow as pa
import pytest

from scripted import Script, scripted_pool, stage_spec
from trd_ray import miniature
from trd_ray.problems.order import Order, seed_of_row
from trd_ray.rows import PROBLEM
from trd_ray.stream.feed import Feed
from trd_ray.stream.graph import arriving, graph

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def problems() -> pa.Table:
    return pa.Table.from_pylist(miniature.problems("test")[:8], schema=pa.schema(PROBLEM)).drop_columns(["tests"])


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
