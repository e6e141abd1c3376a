"""Rank 0 reads a model for all: every rank gets the same bits as if it had read them, and no second whole copy exists.

Two real ranks over gloo. The model whose memory is counted has 200 MB; the others have a few thousand parameters.
"""

import json
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, Gemma2Config, PhiConfig, PhiForCausalLM, Qwen3Config

from trd_ray import config
from trd_ray.distill.model import HiddenStates, _full, add_adapters, load, shard
from trd_ray.errors import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "tied": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "untied": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "odd": Qwen3Config(**SIZES | {"vocab_size": 41, "intermediate_size": 3}, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZES, sliding_window=5, query_pre_attn_scalar=4),
}
LARGE = Qwen3Config(
    vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=False,
)  # fmt: skip
# case -> (model, what the files hold, what is asked for, rank of the adapters)
CASES: dict[str, tuple[str, torch.dtype, torch.dtype, int]] = {
    "tied": ("tied", torch.float32, torch.float32, 0),
    "untied, float32 of bfloat16 files": ("untied", torch.bfloat16, torch.float32, 0),
    "untied, bfloat16 of float32 files": ("untied", torch.float32, torch.bfloat16, 0),
    "rows that two ranks do not share evenly": ("odd", torch.float32, torch.float32, 0),
    "another family, with other buffers": ("gemma2", torch.float32, torch.float32, 0),
    "adapters": ("tied", torch.bfloat16, torch.bfloat16, 4),
}
LORA = {"rank": 4, "alpha": 8}


def learner(**settings: Any) -> config.LearnerConfig:
    return config.LearnerConfig.model_validate({"start_timeout_s": 60} | settings)


def loaded(folder: Path, name: str, dtype: torch.dtype, lora: int) -> Any:
    """What the learner does before it shards."""
    model = load(config.ModelConfig(path=name), str(folder / name), dtype, learner())
    if lora:
        torch.manual_seed(7)
        add_adapters(model, config.LoRAConfig(rank=lora, alpha=2 * lora))
    torch.manual_seed(100 + (dist.get_rank() if dist.is_initialized() else 0))
    return model


def whole(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name. Collective where they are sharded."""
    inner = model.model if isinstance(model, HiddenStates) else model
    tensors = dict(inner.named_parameters(remove_duplicate=False)) | dict(inner.named_buffers(remove_duplicate=False))
    return {name: _full(tensor.detach()).clone() for name, tensor in tensors.items()}


def memory() -> tuple[int, int]:
    """(what this process holds, the most that it ever held), in bytes."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return psutil.Process().memory_info().rss, 1024 * int(peak.split()[1])


def counted(folder: Path) -> int:
    """The bytes that loading and sharding the large model took at most."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(loaded(folder, "untied", torch.float32, 0), mesh, torch.float32)  # imports, arenas
    before, _ = memory()
    student = shard(loaded(folder, "large", torch.float32, 0), mesh, torch.float32)
    _, most = memory()
    del student
    return most - before


def refused(folder: Path, name: str) -> tuple[str, float]:
    begin = time.monotonic()
    with pytest.raises(UserError) as told:
        loaded(folder, name, torch.float32, 0)
    return str(told.value), time.monotonic() - begin


def missing(folder: Path) -> str:
    """What a rank says of files that only rank 0 cannot read."""
    dist.barrier()
    try:
        loaded(folder, "cut", torch.float32, 0)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def another(folder: Path, rank: int) -> str:
    """What a rank says where the second has another config than rank 0."""
    mesh = init_device_mesh("cpu", (2,))
    model = loaded(folder, "odd" if rank else "tied", torch.float32, 0)
    try:
        shard(model, mesh, torch.float32)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    told: dict[str, Any] = {"bytes": counted(folder)}
    tensors = {}
    for case, (name, _, dtype, lora) in CASES.items():
        model = loaded(folder, f"{name}-{case}", dtype, lora)
        told[f"{case}: weights before"] = sorted({p.device.type for p in model.parameters()})
        student = shard(model, init_device_mesh("cpu", (2,)), dtype)
        told[f"{case}: tied"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        tensors[case] = whole(student)
    told["refused"] = refused(folder, "biased")
    told["said to be tied"] = refused(folder, "said to be tied")
    told["missing"] = missing(folder)
    told["another"] = another(folder, rank)
    torch.save(tensors, folder / f"tensors-{rank}.pt")
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def second_rank(_: int, folder: Path) -> None:
    run(1, folder)


def first_rank(_: int, folder: Path) -> None:
    run(0, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for case, (name, files, _, _) in CASES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[name]).to(files).save_pretrained(folder / f"{name}-{case}")
    for name in ("tied", "untied", "odd"):
        AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(folder / name)
    AutoModelForCausalLM.from_config(LARGE).save_pretrained(folder / "large")
    AutoModelForCausalLM.from_config(CONFIGS["tied"]).save_pretrained(folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.copytree(folder / "untied", folder / "said to be tied")
    shutil.copy(folder / "tied" / "config.json", folder / "said to be tied")
    biased = PhiForCausalLM(PhiConfig(**SIZES))
    torch.nn.init.ones_(biased.lm_head.bias)
    biased.save_pretrained(folder / "biased")
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    """What the two ranks told."""
    with pytest.MonkeyPatch.context() as environment:
        # glibc else keeps some of what is freed, by what came before, and counts would be of more than is held.
        environment.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
        processes: list[Any] = [mp.spawn(rank, args=(folder,), join=False) for rank in (first_rank, second_rank)]
    for process in processes:
        while not process.join():
            pass
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_what_the_ranks_hold_together_is_bit_for_bit_what_one_would_have_read(folder, ranks, case):
    name, _, dtype, lora = CASES[case]
    alone = whole(loaded(folder, f"{name}-{case}", dtype, lora))
    for rank in range(2):
        held = torch.load(folder / f"tensors-{rank}.pt")[case]
        assert held.keys() == alone.keys()
        for key, tensor in alone.items():
            assert held[key].dtype == tensor.dtype and torch.equal(held[key], tensor), key


@pytest.mark.parametrize("case", CASES)
def test_only_rank_0_has_weights_before_they_are_sharded_and_ties_stay_tied(ranks, case):
    assert ranks[0][f"{case}: weights before"] == ["cpu"]
    assert ranks[1][f"{case}: weights before"] == ["meta"]
    tied = CASES[case][0] != "untied"
    assert [told[f"{case}: tied"] for told in ranks] == [tied, tied]


def test_a_rank_that_does_not_read_holds_its_shard_and_one_layer_but_no_whole_copy(ranks):
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    total = 12 * layer + 4 * 2 * 1000 * 512
    readers, others = (told["bytes"] for told in ranks)
    assert readers > 0.9 * total  # what is counted is there to be counted
    assert others < total / 2 + 2 * layer + 0.1 * total


def test_what_rank_0_refuses_every_rank_refuses_at_once_in_the_same_words(ranks):
    (first, first_s), (second, second_s) = (told["refused"] for told in ranks)
    assert first == second and "are not the product" in first
    assert max(first_s, second_s) < 30


def test_a_head_of_its_own_that_the_config_does_not_say_is_refused_by_one_rank_and_by_two(folder, ranks):
    alone, _ = refused(folder, "said to be tied")
    assert [alone] * 2 == [told["said to be tied"][0] for told in ranks]
    assert "tie_word_embeddings: true, but its lm_head has weights of its own" in alone


def test_files_that_rank_0_cannot_read_end_the_others_with_its_reason(ranks):
    assert ranks[0]["missing"].startswith("SafetensorError") or ranks[0]["missing"].startswith("OSError")
    assert ranks[1]["missing"].startswith("RuntimeError: rank 0 could not load ")
    assert ranks[0]["missing"].partition(": ")[2] in ranks[1]["missing"]


def test_a_rank_whose_files_are_of_another_model_is_named_on_every_rank(ranks):
    first, second = (told["another"] for told in ranks)
    assert first == second
    assert "UserError: rank 1 of the learner builds another model than rank 0" in first and "same model files" in first
