"""What a plan counts equals arithmetic done apart from it, and what PyTorch is seen to hold.

The figures of Qwen3-8B are those of its shapes: 151,936 tokens, width 4,096, MLP 12,288, 36 layers, 32 heads of 128
over 8 of keys and values.
"""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen3Config

from trd_ray import models
from trd_ray.config import Recipe
from trd_ray.preflight import memory, placement
from trd_ray.preflight.actors import ActorPlan

GIB = 2**30
MIB = 2**20
QWEN3_8B = models.facts_of(
    Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-8B",
)  # fmt: skip
PARAMETERS = 8_190_735_360
EMBEDDING = 1_244_659_712  # bytes of Qwen3-8B's largest matrix in bfloat16
NODE = {"CPU": 128.0, "GPU": 8.0, "memory": 1000 * GIB}
ADAPTED: dict[str, Any] = {"workers": 4, "lora": {}, "activation_checkpointing": True, "tokens_per_micro_batch": 38912}


def recipe(**tree: Any) -> Recipe:
    return Recipe.model_validate(tree)


def plan(cluster: dict[str, float] = NODE, gpu_gib: float = 80, **tree: Any) -> placement.Placement:
    return placement.plan(recipe(**tree), QWEN3_8B, QWEN3_8B, cluster, gpu_gib=gpu_gib)


def actor(found: placement.Placement, name: str) -> ActorPlan:
    return next(a for a in found.actors if a.spec.name == name)


# A weight sync


def test_a_sync_takes_two_buffers_that_may_each_hold_one_tensor_more_and_the_largest_tensor_itself():
    expected = 2 * (268_435_456 + EMBEDDING) + EMBEDDING
    for backend in ("nccl", "ipc"):
        assert memory.sync_bytes(backend, QWEN3_8B, 2) == expected
    assert memory.sync_bytes("gloo", QWEN3_8B, 4) == 2 * 2 * EMBEDDING
    assert memory.sync_bytes("adapter", QWEN3_8B, 2) == memory.sync_bytes(None, QWEN3_8B, 2) == 0
    sampler = actor(plan(), "sampler").memory_gib
    assert sampler["weight sync"] == pytest.approx(expected / GIB)
    assert "weight sync" not in actor(plan(), "refiner").memory_gib  # its teacher is frozen
    assert "weight sync" in actor(plan(teacher={"follow": "live"}), "refiner").memory_gib
    adapted = plan(learner={"lora": {}}, sync={"lora": "adapter"})
    assert "weight sync" not in actor(adapted, "sampler").memory_gib
    evaluated = placement.plan(recipe(), QWEN3_8B, QWEN3_8B, NODE, job="evaluate", gpu_gib=80)
    assert "weight sync" not in actor(evaluated, "sampler").memory_gib


def test_an_engine_that_leaves_a_sync_no_room_beside_its_share_is_refused():
    """80 GiB at 0.92 leave 6.4, at 0.96 they leave 3.2; the sync takes 4.0."""
    short = {"workers": 6, "activation_checkpointing": True}
    assert plan(learner=short, sampler={"memory_utilization": 0.92, "max_model_len": 20480}).fits
    told = plan(learner=short, sampler={"memory_utilization": 0.96, "max_model_len": 20480}).reasons
    assert len(told) == 1 and "the sampler needs about 80.8 GiB of each of its GPUs" in told[0]
    assert "lower sampler.memory_utilization" in told[0]


def test_a_loss_without_a_teacher_needs_no_memory_for_one():
    opd = {"mode": "opd", "path": "t"}
    kl, sft = (
        memory.rank_gib(recipe(teacher=opd, loss={"divergence": kind}), QWEN3_8B, QWEN3_8B, on_gpu=True)
        for kind in ("forward_kl", "cross_entropy")
    )
    assert kl["teacher"] == pytest.approx(2 * PARAMETERS / GIB) and "teacher" not in sft
    assert sft["gathered"] < kl["gathered"]


def test_a_rank_sends_in_memory_that_the_step_has_freed():
    """Small micro-batches free too little; what is missing is counted."""
    sync = (2 * (256 * MIB + EMBEDDING) + EMBEDDING) / GIB
    step = {"gathered", "loss chunk", "head gradient", "activations", "backward"}
    adapted = {"workers": 4, "lora": {}, "activation_checkpointing": True, "chunk_tokens": 1}
    parts = actor(plan(learner=adapted | {"tokens_per_micro_batch": 1}), "learner").memory_gib
    assert sum(parts[name] for name in parts.keys() & step) > sync  # two layers and both tables are gathered
    assert "weight sync" not in parts
    small = memory.rank_gib(recipe(learner=adapted), TINY, TINY, True, sync="nccl")
    largest = TINY.vocab_size * TINY.hidden_size * 2
    freed = sum(size for name, size in small.items() if name in step)
    assert small.get("weight sync", 0) == pytest.approx(max(0, (3 * largest + 512 * MIB) / GIB - freed))


# A step


def test_backward_makes_what_an_8b_layer_with_adapters_is_known_to_make():
    """For 38,912 tokens: the MLP's gradients 3 x 0.96 GB, LoRA's 2 x 0.96, dq in float32 0.64, dk and dv 0.64."""
    wide = 38912 * 12288 * 2
    heads = 38912 * 32 * 128
    parts = actor(plan(learner=ADAPTED), "learner").memory_gib
    assert parts["backward"] * GIB == 3 * wide + 2 * wide + 4 * heads + 2 * 2 * heads
    assert parts["backward"] * GIB / 1e9 == pytest.approx(6.1, abs=0.1)
    whole = actor(plan(learner=ADAPTED | {"lora": None}), "learner").memory_gib
    assert parts["backward"] - whole["backward"] == pytest.approx(2 * wide / GIB)


TINY_CONFIG = Qwen3Config(
    vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=True,
)  # fmt: skip
TINY = models.facts_of(TINY_CONFIG, "tiny")


class Held(TorchDispatchMode):
    """The bytes of all tensors that operations have made and nobody has let go, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() and storage.data_ptr() not in self.known:
                    self.known.add(storage.data_ptr())
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage.data_ptr(), storage.nbytes())
        return out

    def _gone(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.now -= size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_backward_makes_is_at_least_what_pytorch_is_seen_to_make_and_not_twice_as_much(dtype):
    model = AutoModelForCausalLM.from_config(TINY_CONFIG, dtype=getattr(torch, dtype)).train()
    model.requires_grad_(False)  # the gradients of weights are counted elsewhere
    tokens = 512
    embeds = torch.randn(1, tokens, 128, dtype=getattr(torch, dtype)).requires_grad_()
    with Held() as held:
        hidden = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        total = hidden.float().sum()
        del hidden
        before, held.most = held.now, held.now
        total.backward()
    tree = {"learner": {"dtype": dtype, "tokens_per_micro_batch": tokens}}
    counted = memory.rank_gib(recipe(**tree), TINY, TINY, False)["backward"] * GIB
    made = held.most - before
    assert 0.5 * counted <= made <= counted


# Loading


def test_one_rank_reads_a_model_for_all_and_the_host_needs_one_copy_and_not_one_a_rank():
    full = {"workers": 8, "activation_checkpointing": True}
    found = plan(learner=full, data={"source": "corpus", "path": "c"}, evaluation={"path": None})
    learner = actor(found, "learner")
    shards = (4 + 8) * PARAMETERS / 8 / GIB  # weights and optimizer, as a checkpoint copies them
    assert learner.host_gib == pytest.approx(1.0 + shards)
    # Rank 0 has read all of the student in float32 when it has none of its own to save.
    assert learner.first_gib == pytest.approx(max(4 * PARAMETERS / GIB - shards, 2 * PARAMETERS / GIB))
    verifier = memory.HOST_OVERHEAD_GIB["verifier"]
    assert found.needs["memory"] == pytest.approx(8 * learner.host_gib + learner.first_gib + verifier)


def test_one_rank_alone_on_a_cpu_still_holds_the_whole_model_while_it_loads():
    one, two = (recipe(learner={"workers": n, "tokens_per_micro_batch": 1, "chunk_tokens": 1}) for n in (1, 2))
    assert memory.reader_gib(one, QWEN3_8B, QWEN3_8B, False) == 0
    assert "loading" not in memory.rank_gib(two, QWEN3_8B, QWEN3_8B, False)
    both = memory.rank_gib(two, QWEN3_8B, QWEN3_8B, False)
    teacher = 2 * PARAMETERS / GIB
    expected = max(4 * PARAMETERS / GIB, both["weights"] + teacher) - sum(both.values())
    assert memory.reader_gib(two, QWEN3_8B, QWEN3_8B, False) == pytest.approx(max(0, expected))


# The object store


def test_the_object_store_holds_the_rows_of_the_steps_that_exist_at_a_time_and_two_sets_of_adapters():
    lengths = {
        "sampler": {"max_response_tokens": 16384},
        "refiner": {"max_response_tokens": 4096, "max_prompt_tokens": 18432},
    }
    row = 16384 * 12 + 4096 * 16 + 18432 * 8
    paper = recipe(rollouts_per_step=512, stream={"max_staleness": 1}, **lengths)
    found = 512 * 4096 * 2 * 8  # at each trained token, on its way to the driver
    assert memory.object_store_gib(paper, QWEN3_8B) == pytest.approx((3 * 512 * row + found) / GIB, abs=0.1)
    adapters = 2 * memory.adapter_parameters(QWEN3_8B, 64)
    assert adapters == pytest.approx(349e6, rel=0.01)  # GPU.md's figure in bfloat16
    sent = recipe(
        rollouts_per_step=512, stream={"max_staleness": 1}, learner={"lora": {}}, sync={"lora": "adapter"}, **lengths
    )
    grown = memory.object_store_gib(sent, QWEN3_8B) - memory.object_store_gib(paper, QWEN3_8B)
    assert grown == pytest.approx(2 * adapters / GIB, abs=0.11)


def test_the_plan_gives_a_local_cluster_its_object_store_unless_a_key_does():
    here = {"CPU": 8.0, "memory": 60 * GIB, "free_gib": 60.0, "total_gib": 64.0}

    def planned(**tree: Any) -> placement.Placement:
        return placement.plan(recipe(**tree), TINY, TINY, here)

    assert planned().object_store_gib == 0.5
    large = planned(rollouts_per_step=65536)
    assert large.object_store_gib > 2 and large.has["memory"] == pytest.approx(60 - large.object_store_gib)
    assert planned(rollouts_per_step=65536, cluster={"object_store_gib": 0.2}).object_store_gib == 0.2
