"""Seconds of training, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from trd_ray.economics import constants, learning
from trd_ray.economics.engine_speed import gpu_of
from trd_ray.economics.learning import HowItTrains, LearnerSpeed, Trained
from trd_ray.economics.model_costs import ModelCosts, model_costs
from trd_ray.known_models import known

SMALL = ModelCosts(parameters=1200, body=1000, kv_bytes=8, attention=3.0, head=200.0, layers=2, width=2)
HOW = HowItTrains(adapters=True, checkpointing=True, updates=1, micro_batch_tokens=1000, trained_numbers=10, ranks=1)
ROW = Trained(student_prompt=10, teacher_prompt=40, response=20)
H100 = gpu_of("H100", 80)[0]


def test_no_number_is_assumed_that_nothing_uses():
    package = Path(learning.__file__).parents[1]
    text = " ".join(path.read_text() for path in package.rglob("*.py") if path.name != "constants.py")
    names = {name for name in vars(constants) if name.isupper()}
    own = Path(constants.__file__).read_text()
    assert {name for name in names if name not in text and own.count(name) < 2} == set()


def test_the_flops_of_a_row_by_hand():
    student = (
        2 * 1000 * 3 * 30 + 3.0 * (1 + 1 + 2.5) * 30**2
    )  # forward, again, back; adapters need no weights' gradients
    teacher = 2 * 1000 * 60 + 3.0 * 60**2
    heads = 20 * 200.0 * (1 + 2)
    assert learning.work([ROW], SMALL, SMALL, HOW).flops == pytest.approx(student + teacher + heads)


def test_a_loss_without_a_teacher_costs_what_the_student_alone_costs():
    student = 2 * 1000 * 3 * 30 + 3.0 * (1 + 1 + 2.5) * 30**2
    assert learning.work([ROW], SMALL, None, HOW).flops == pytest.approx(student + 20 * 200.0 * 2)


def test_what_is_computed_twice_is_told_apart():
    work = learning.work([ROW], SMALL, SMALL, HOW)
    assert work.again == pytest.approx(2 * 1000 * 30 + 3.0 * 30**2)
    once = learning.work([ROW], SMALL, SMALL, replace(HOW, checkpointing=False))
    assert work.flops - work.again == pytest.approx(once.flops) and once.again == 0


def test_all_weights_cost_a_third_more_of_the_student_and_no_checkpointing_a_quarter_less():
    def body(how: HowItTrains) -> float:
        alone = ModelCosts(1000, 1000, 8, 0.0, 0.0, 2, 2)
        nobody = ModelCosts(0, 0, 0, 0.0, 0.0, 0, 2)
        return learning.work([ROW], alone, nobody, how).flops

    whole = replace(HOW, adapters=False)
    assert body(whole) / body(HOW) == pytest.approx(4 / 3)
    assert body(replace(whole, checkpointing=False)) / body(whole) == pytest.approx(3 / 4)


def test_qwen3_8b_has_the_shapes_of_its_card():
    costs = model_costs(known()["Qwen/Qwen3-8B"])
    assert costs.body == pytest.approx(6.95e9, rel=1e-3)  # the card's non-embedding parameters
    assert costs.kv_bytes == 2 * 36 * 8 * 128 * 2 == 147_456
    assert costs.head == 2 * 151_936 * 4096


def test_training_at_the_share_of_flops_is_that_share():
    costs = model_costs(known()["Qwen/Qwen3-8B"])
    rows = [Trained(250, 9000, 900)] * 128
    work = learning.work(rows, costs, costs, HOW)
    took = learning.training_s(work, learning.on_gpu_speed(H100), 1)
    assert work.flops / took / H100.flops == pytest.approx(0.40, rel=0.01)
    assert 60 < took < 100  # one H100 trains a step of 128 in 81 s by the simulation of GPU economics


def test_ranks_divide_products_until_the_network_binds():
    costs = model_costs(known()["Qwen/Qwen3-8B"])
    rows = [Trained(250, 9000, 900)] * 512

    def took(ranks: int, several_nodes: bool) -> float:
        how = replace(HOW, ranks=ranks, micro_batch_tokens=38_912)
        return learning.training_s(
            learning.work(rows, costs, costs, how), learning.on_gpu_speed(H100, several_nodes), ranks
        )

    assert took(8, False) == pytest.approx(took(1, False) / 8, rel=0.05)
    slow = replace(learning.on_gpu_speed(H100), link_bytes_s=1e9)
    how = replace(HOW, ranks=8, micro_batch_tokens=38_912)
    work = learning.work(rows, costs, costs, how)
    assert learning.training_s(work, slow, 8) == pytest.approx(work.gathered_bytes / 1e9, rel=0.01)


def test_the_bytes_between_ranks_by_hand():
    rows = [ROW] * 100  # 60 tokens each: on 4 ranks of 1,000 tokens a micro-batch, 2 of them
    how = replace(HOW, ranks=4)
    student, teacher = 1200 * 2, 1200 * 2
    gathered = 2 * (2 * student + teacher) * 3 / 4  # forward and back, of which each rank has a quarter
    assert learning.work(rows, SMALL, SMALL, how).gathered_bytes == pytest.approx(gathered)
    reduced = 2 * 4 * 1200 * 3 / 4  # gradients in float32, after each micro-batch
    whole = learning.work(rows, SMALL, SMALL, replace(how, adapters=False)).gathered_bytes
    assert whole == pytest.approx(gathered + reduced)


def test_several_updates_cost_their_launches_and_the_optimizer_its_bytes():
    speed = LearnerSpeed(flops=1e9, link_bytes_s=1e9, memory_bytes_s=1e6, update_s=0.5)
    once, four = (
        learning.training_s(learning.work([ROW], SMALL, SMALL, replace(HOW, updates=n)), speed, 1) for n in (1, 4)
    )
    assert four - once == pytest.approx(3 * (0.5 + 28 * 10 / 1e6))
    assert learning.training_s(learning.work([], SMALL, SMALL, HOW), speed, 1) == 0
