"""The campaign's learner without arithmetic: its weights tell which rows were trained, in which order and how often."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trd_ray import config, miniature
from trd_ray.distill.batches import Example
from trd_ray.distill.checkpoint import Checkpointer
from trd_ray.distill.learned_metrics import METRICS
from trd_ray.distill.learner import Learner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
from chaos_rounds import made_up  # noqa: E402

STEPS = [[Example(row, [2], [3], [4, 5, row % 7]) for row in range(first, first + 4)] for first in (0, 4, 8)]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    meet = tmp_path_factory.mktemp("meet") / "file"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def learner(one_rank, monkeypatch):
    monkeypatch.setattr(made_up, "STEP_S", 0.0)
    student = str(miniature.model_path("student"))
    tree = {"student": {"path": student}, "learner": {"dtype": "float32", "updates_per_step": 2, "lr": 1e-3}}
    made = made_up._made_up(Learner, METRICS)

    def new():
        return made(
            config.from_tree(tree), student_path=student, teacher_path=student, tokenizer_path=student, total_steps=4,
            device=torch.device("cpu"),
        )  # fmt: skip

    return new


def train(learner, steps: list[list[Example]]) -> dict[str, float]:
    measured = {}
    for examples in steps:
        measured = learner.step([[examples[:2]], [examples[2:]]])
    return measured


def weights(learner) -> torch.Tensor:
    return torch.cat([p.flatten() for _, p in learner.weights("student", torch.float32)]).clone()


def test_equal_steps_give_the_same_bits_and_another_order_a_repeated_or_a_lost_row_gives_others(learner):
    plain, same, other, twice, lost = (learner() for _ in range(5))
    measured = train(plain, STEPS)
    train(same, STEPS)
    train(other, [STEPS[1], STEPS[0], STEPS[2]])
    train(twice, [STEPS[0], [*STEPS[1], STEPS[1][0]], STEPS[2]])
    train(lost, [STEPS[0], STEPS[1][:3], STEPS[2]])
    assert torch.equal(weights(plain), weights(same))
    for odd in (other, twice, lost):
        assert not torch.equal(weights(plain), weights(odd))
    assert measured["updates"] == 2 and measured["trained_tokens"] == 12
    assert measured.keys() == set(METRICS) - {"weights_not_finite"}


def test_a_learner_that_goes_on_from_a_checkpoint_ends_with_the_bits_of_one_that_never_ended(learner, tmp_path):
    plain, begun, resumed = (learner() for _ in range(3))
    train(plain, STEPS)
    train(begun, STEPS[:1])
    checkpointer = Checkpointer(begun, 60)
    assert checkpointer.begin(tmp_path) is None
    assert checkpointer.done(60) == (True, None)
    Checkpointer(resumed, 60).load(tmp_path)
    train(resumed, STEPS[1:])
    assert torch.equal(weights(plain), weights(resumed))
