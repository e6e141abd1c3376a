"""vLLM alone with the shape of Qwen3-8B and random weights: how fast it reads prompts and decodes at a context of 8k.

The plans of the paper's recipes stand on these two figures: about 1,500 tokens a second and 27 ms an iteration on an
H100 with 43 sequences. Needs vLLM and no model; figures never fail the part.
"""

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from trd_ray.doctor.gpu import flops
from trd_ray.doctor.gpu.outcome import Figures
from trd_ray.doctor.gpu.speed import LARGE_GIB, make_folder

SEQUENCES = 43
CONTEXT = 8192
NEW = 256
UTILIZATION = 0.85
OUTSIDE_GIB = 6.0  # activations, graphs and CUDA itself


def run(folder: Path) -> Figures:
    return measure("auto", 2)


def run_fp8(folder: Path) -> Figures:
    return measure("fp8", 1)


def measure(kv_cache_dtype: str, kv_bytes: int) -> Figures:
    import torch

    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    large = gib >= LARGE_GIB
    shape = flops.QWEN3_8B if large else flops.QWEN3_1P7B
    options = {"kv_cache_dtype": kv_cache_dtype, "gpu_memory_utilization": UTILIZATION}
    count = sequences(shape, gib, kv_bytes)
    return {"shape": "8B" if large else "1.7B"} | speeds(shape, count, CONTEXT, NEW, options)


def speeds(shape: flops.Shape, count: int, context: int, new: int, options: dict[str, Any]) -> Figures:
    """Tokens a second of `count` sequences that are read at once, and then decoded at once."""
    # Its kernel is compiled at start and, as every request has a seed, never used.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as place:
        make_folder(shape, place)
        engine = LLM(
            model=place, load_format="dummy", dtype="bfloat16", max_model_len=context + new, seed=0, **options
        )  # fmt: skip
        rng = random.Random(0)
        prompts: Any = [
            {"prompt_token_ids": [rng.randrange(2, shape.vocabulary) for _ in range(context)]} for _ in range(count)
        ]

        def seconds(tokens: int) -> float:
            sampling: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": tokens}
            asked = [SamplingParams(seed=i, ignore_eos=True, detokenize=False, **sampling) for i in range(count)]
            begin = time.perf_counter()
            engine.generate(prompts, asked, use_tqdm=False)
            return time.perf_counter() - begin

        reading = seconds(1)
        again = seconds(1)  # from the prefix cache: what decoding below does not take
        decoding = max(1e-9, seconds(new) - again)
    return {
        "sequences": count,
        "prompt tokens/s": count * context / reading,
        "new tokens/s": count * (new - 1) / decoding,
        "ms an iteration": 1000 * decoding / (new - 1),
    }


def sequences(shape: flops.Shape, gib: float, kv_bytes: int) -> int:
    """How many sequences of the context the cache holds at once, at most SEQUENCES."""
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_bytes
    room = (UTILIZATION * gib - OUTSIDE_GIB) * 2**30 - 2 * shape.parameters
    return max(1, min(SEQUENCES, int(room // (token * (CONTEXT + NEW)))))
