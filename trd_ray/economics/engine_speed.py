"""How fast an engine is: seconds of an iteration from its batch, by a roofline, or as a run measured them.

    ModelCosts, Gpu    ->  on_gpu()  -->  EngineSpeed  ->  iteration_s(sequences, tokens in the cache)
    ModelCosts, cores  ->  on_cpu()  -/                ->  prefill_s(tokens)

An iteration reads the weights once and the keys and values of every sequence, and gives each sequence a token. It takes
the longer of reading the weights and multiplying by them, and then the attention, which is bound by memory.

The tokens of a prompt pass the layers alone. Logits are made of its last position, and are those of the answer's first
token, which counts as an iteration like every other token of an answer.
"""

import re
from dataclasses import dataclass, replace

from trd_ray.economics import constants as c
from trd_ray.economics.constants import Gpu
from trd_ray.economics.model_costs import ModelCosts


@dataclass(frozen=True)
class EngineSpeed:
    launch_s: float  # of an iteration, whatever its batch
    weights_s: float  # the reading of the weights
    product_s: float  # of the matrices for one sequence: they bind in place of weights_s where the batch is large
    sequence_s: float  # for each sequence, besides
    cached_token_s: float  # for each token whose keys and values are read
    prefill_token_s: float
    prefill_square_s: float  # times the square of a prompt's tokens: its attention
    request_s: float = 0.0  # once a request, outside the engine
    cache_tokens: float = float("inf")  # that the cache holds
    most_sequences: int = 256

    def base_s(self, sequences: int) -> float:
        """An iteration without what it reads of the cache."""
        bound = max(self.weights_s, sequences * self.product_s)
        return self.launch_s + bound + sequences * self.sequence_s

    def iteration_s(self, sequences: int, cached_tokens: float) -> float:
        return self.base_s(sequences) + cached_tokens * self.cached_token_s

    def prefill_s(self, tokens: float, cached: float = 0.0) -> float:
        """The reading of a prompt, of which the prefix cache has the first `cached` tokens."""
        square = tokens * tokens - cached * cached
        return max(0.0, tokens - cached) * self.prefill_token_s + max(0.0, square) * self.prefill_square_s

    def slower(self, times: float) -> "EngineSpeed":
        """The same engine at less speed: with adapters, or on cores that others use too."""
        names = ("launch_s", "weights_s", "product_s", "sequence_s", "cached_token_s", "prefill_token_s")
        scaled = {name: getattr(self, name) * times for name in (*names, "prefill_square_s")}
        return replace(self, **scaled)


def on_gpu(
    model: ModelCosts, gpu: Gpu, *, tensor_parallel: int = 1, cache_gib: float = 0.0, most_sequences: int = 256,
    kv_width: int | None = None,
) -> EngineSpeed:  # fmt: skip
    """An engine on `tensor_parallel` GPUs, each with `cache_gib` of cache, whose numbers have `kv_width` bytes."""
    memory = gpu.memory_bytes_s * c.MEMORY_SHARE * tensor_parallel
    flops = gpu.flops * c.MATRIX_SHARE * tensor_parallel
    kv_bytes = model.kv_bytes * (kv_width or model.width) / model.width
    reduces = 2 * model.layers * c.ALL_REDUCE_S if tensor_parallel > 1 else 0.0
    return EngineSpeed(
        launch_s=c.ITERATION_S + reduces,
        weights_s=model.read * model.width / memory,
        product_s=(2.0 * model.body + model.head) / flops,
        sequence_s=c.SEQUENCE_S,
        cached_token_s=kv_bytes / memory,
        prefill_token_s=2.0 * model.body / flops,
        prefill_square_s=model.attention / flops,
        cache_tokens=cache_gib * tensor_parallel * 2**30 / kv_bytes if cache_gib else float("inf"),
        most_sequences=most_sequences,
    )


def on_cpu(model: ModelCosts, cores: float, *, cache_gib: float = 0.0, most_sequences: int = 256) -> EngineSpeed:
    """An engine of vLLM's CPU build on so many cores."""
    flops = c.CPU_FLOPS * cores
    return EngineSpeed(
        launch_s=c.CPU_ITERATION_S,
        weights_s=model.read * model.width / c.CPU_BYTES_S,
        product_s=(2.0 * model.body + model.head) / flops,
        sequence_s=c.CPU_SEQUENCE_S,
        cached_token_s=model.kv_bytes / c.CPU_BYTES_S,
        prefill_token_s=2.0 * model.body / flops,
        prefill_square_s=model.attention / flops,
        request_s=c.CPU_REQUEST_S,
        cache_tokens=cache_gib * 2**30 / model.kv_bytes if cache_gib else float("inf"),
        most_sequences=most_sequences,
    )


def gpu_of(kind: str, gib: float | None) -> tuple[Gpu, bool]:
    """The GPU of a kind, as NVML or `--on` names it, and whether it had to be assumed from its memory."""
    words = kind.upper().replace("-", " ").replace("_", " ")
    # Spaces may be anywhere, but no digit may follow: an A4000 is no A40.
    found = [gpu for gpu in c.GPUS if re.search(" ?".join(_plain(gpu.name)) + r"(?!\d)", words)]
    if "A100" in words and not found:
        found = [gpu for gpu in c.GPUS if gpu.name.startswith("A100") and abs(gpu.gib - (gib or 80)) < 15]
    if found:
        return max(found, key=lambda gpu: len(gpu.name)), False
    size = gib or 80.0
    name = next(name for least, name in c.ASSUMED_KINDS if size >= least)
    return next(gpu for gpu in c.GPUS if gpu.name == name), True


def _plain(name: str) -> str:
    return name.upper().replace("-", "").replace(" ", "")
