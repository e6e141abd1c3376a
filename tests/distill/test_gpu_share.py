"""A rank that leaves its GPU and comes back trains on as if it had stayed. The moves are made on a CPU here."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from serving import make_tiny_model
from trd_ray import config
from trd_ray.config import ONLY
from trd_ray.distill import gpu_share
from trd_ray.distill.batches import Example
from trd_ray.distill.gpu_share import CPU, GpuShare, move
from trd_ray.distill.learner import Learner

ROWS = [Example(row, [2, 3], [4, 2, 3], [5, 6, 7 + row]) for row in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


@pytest.fixture(scope="module", autouse=True)
def alone():
    """This process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def learner_of(model: str, **keys: Any) -> Learner:
    recipe = config.from_tree(
        {"student": {"path": model}, "teacher": {"follow": "ema"}, "learner": {"dtype": "float32", "lr": 1e-2} | keys}
    )
    return Learner(
        recipe, student_path=model, teacher_path=model, tokenizer_path=model, total_steps=4, device=torch.device("cpu")
    )


def weights(learner: Learner) -> list[torch.Tensor]:
    average: Any = learner.average
    tensors: list[Any] = [*learner.trained.values(), *average.average.values()]
    return [tensor.full_tensor().detach().clone() for tensor in tensors]


def test_a_learner_that_was_moved_between_its_commands_makes_the_same_weights(model):
    stays, goes = learner_of(model), learner_of(model)
    before = list(map(id, goes.trained.values()))
    for _ in range(2):
        assert stays.step([[ROWS]]) == goes.step([[ROWS]])
        move(goes, CPU)
        sent = [
            dict(learner.weights(who, torch.float32)) for learner in (stays, goes) for who in ("student", "teacher")
        ]
        assert all(torch.equal(sent[i][name], sent[i + 2][name]) for i in (0, 1) for name in sent[i])
        move(goes, goes.device)
        asked = [([2, 3], [4, 5])]
        assert stays.logprobs(asked) == goes.logprobs(asked)
    assert all(map(torch.equal, weights(stays), weights(goes)))
    assert before == list(map(id, goes.trained.values())), "the optimizer would train other parameters"


@pytest.mark.parametrize(
    ("keys", "moves"), [({}, True), ({"lora": {"rank": 2}}, False), ({"cpu_offload": True}, False)]
)
def test_only_weights_that_all_train_and_are_on_the_gpu_move(model, monkeypatch, keys, moves):
    moved: list[str] = []
    monkeypatch.setattr(gpu_share, "move", lambda learner, device: moved.append(str(device)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: moved.append("emptied"))
    recipe = config.from_tree({"student": {"path": model}, "learner": keys})
    on_gpu: Any = type("OnGpu", (), {"recipe": recipe, "device": torch.device("cuda", 0), "teachers": {ONLY: None}})()
    share = GpuShare(on_gpu)
    share.take()
    for _ in range(2):  # a command may be given again
        share.give()
    share.take()
    assert moved == (["cpu", "emptied", "emptied", "cuda:0"] if moves else ["emptied"] * 2)


def test_on_a_cpu_nothing_is_given(model, monkeypatch):
    monkeypatch.setattr(gpu_share, "move", lambda *_: pytest.fail("it moved"))
    share = GpuShare(learner_of(model))
    share.give()
    share.take()
