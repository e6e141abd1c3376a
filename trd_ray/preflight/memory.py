"""How much memory an engine and a learner rank take, in GiB, estimated from a recipe and the facts of its models.

    recipe, ModelFacts  ->  engine_gib(), sequence_gib(), rank_gib(), rank_host_gib()  ->  GiB by what it holds

- Weights, gradients, optimizer state and KV cache are counted exactly.
- Activations and the loss are counted by hand, from the shapes that they keep.
- What processes and contexts take on top are round figures.
"""

from trd_ray.config import EngineConfig, Recipe
from trd_ray.models import ModelFacts

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# A process with torch and Ray loaded and no model (measured). An engine is three: its actor, vLLM's core and worker.
HOST_OVERHEAD_GIB = {"engine": 2.5, "learner": 1.0, "verifier": 0.4}
_ENGINE_GPU_OVERHEAD_GIB = 2.0  # activations of vLLM's profiling run, CUDA context and graphs
_LEARNER_GPU_OVERHEAD_GIB = 2.0  # CUDA and NCCL contexts, fragmentation
_CHUNK_BYTES = 5  # an entry of [C, V] takes its gradient, and for a quarter of the chunk the logits of both sides
_CHUNK_GIB = 0.2  # what the elementwise part makes of a block


def engine_gib(
    engine: EngineConfig, recipe: Recipe, model: ModelFacts, gpu_gib: float | None
) -> tuple[dict[str, float], float]:
    """Memory of each GPU of an engine (or of the host, without `gpu_gib`) in GiB, and how much of it is KV cache.

    On a GPU vLLM takes the share memory_utilization and gives the cache what weights and runtime leave, below 0 if they
    leave nothing. On a CPU the cache has the size that it is given, in whole GiB.
    """
    width = BYTES[engine.dtype or recipe.learner.dtype]
    weights = model.parameters * width / engine.tensor_parallel / GIB
    parts = {"weights": weights}
    if engine is recipe.sampler and recipe.learner.lora and recipe.sync.lora == "adapter":
        # Counted whole on each GPU: vLLM splits only one of an adapter's two sides.
        adapters = adapters_at_once(recipe) * adapter_parameters(model, recipe.learner.lora.rank) * width
        parts["adapters"] = adapters / GIB
    if gpu_gib is None:
        kv = float(max(1, round(engine.cpu_kv_cache_gib)))
        return parts | {"KV cache": kv, "process": HOST_OVERHEAD_GIB["engine"]}, kv
    kv = engine.memory_utilization * gpu_gib - sum(parts.values()) - _ENGINE_GPU_OVERHEAD_GIB
    return parts | {"KV cache": max(0.0, kv), "runtime": _ENGINE_GPU_OVERHEAD_GIB}, kv


def adapters_at_once(recipe: Recipe) -> int:
    """Adapters that an engine holds: a new one, and those that requests under way began with.

    While weights are sent, the rollouts under way are at most max_staleness versions old.
    """
    staleness = recipe.stream.max_staleness
    return 1 + max(1, staleness if isinstance(staleness, int) else 1)


def sequence_gib(engine: EngineConfig, recipe: Recipe, model: ModelFacts, tokens: int) -> float:
    """KV cache of one sequence on each GPU. vLLM copies key-value heads where there are more GPUs than heads."""
    heads = max(1.0, model.kv_heads / engine.tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * BYTES[engine.dtype or recipe.learner.dtype] * tokens / GIB


def rank_gib(
    recipe: Recipe, student: ModelFacts, teacher: ModelFacts, on_gpu: bool, longest_sequence_tokens: int = 0
) -> dict[str, float]:
    """Memory of one FSDP rank: what trains in float32, computation in learner.dtype, heads gathered for the loss."""
    learner = recipe.learner
    width, teacher_width = BYTES[learner.dtype], BYTES[recipe.teacher.dtype or learner.dtype]
    tokens = max(learner.tokens_per_micro_batch, longest_sequence_tokens)
    head = student.vocab_size * student.hidden_size
    shards = _shards(recipe, student, teacher)
    parts = {
        **shards,
        "gathered": 2 * width * _gathered(student) + ("teacher" in shards) * teacher_width * _gathered(teacher),
        "loss chunk": _CHUNK_BYTES * learner.chunk_tokens * student.vocab_size + _CHUNK_GIB * GIB * on_gpu,
        "head gradient": 0 if learner.lora else (4 + width) * head,
        "activations": _activations(student, tokens, width, learner.activation_checkpointing),
    }
    # Each rank loads a whole model before it keeps its shard. FSDP shards the student before the teacher is loaded.
    loading = max(
        (width if learner.lora else 4) * student.parameters,
        shards["weights"] + ("teacher" in shards) * teacher.parameters * teacher_width,
    )
    if not on_gpu:  # only shards are moved to a GPU
        parts["loading"] = max(0, loading - sum(parts.values()))
    if learner.cpu_offload and on_gpu:
        parts = {name: size for name, size in parts.items() if name not in shards}
    gib = {name: size / GIB for name, size in parts.items() if size}
    return gib | ({"runtime": _LEARNER_GPU_OVERHEAD_GIB} if on_gpu else {"process": HOST_OVERHEAD_GIB["learner"]})


def rank_host_gib(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> float:
    """Host memory of a rank on a GPU: each model is loaded there first, and with cpu_offload its shards stay there."""
    teacher_width = BYTES[recipe.teacher.dtype or recipe.learner.dtype]
    width = BYTES[recipe.learner.dtype] if recipe.learner.lora else 4
    loading = max(width * student.parameters, teacher_width * teacher.parameters)
    shards = _shards(recipe, student, teacher)
    # While the next steps train, a checkpoint copies what it saves to the host. Rank 0 also copies the whole export.
    saved = sum(shards.get(name, 0) for name in ("optimizer", "average")) + shards["gradients"]
    saved += BYTES[recipe.learner.dtype] * student.parameters
    offloaded = sum(shards.values()) if recipe.learner.cpu_offload else 0
    return HOST_OVERHEAD_GIB["learner"] + (max(loading, saved) + offloaded) / GIB


def _shards(recipe: Recipe, student: ModelFacts, teacher: ModelFacts) -> dict[str, float]:
    """What FSDP spreads over the ranks: bytes on each of them."""
    learner = recipe.learner
    ranks = learner.workers
    width, teacher_width = BYTES[learner.dtype], BYTES[recipe.teacher.dtype or learner.dtype]
    trained = adapter_parameters(student, learner.lora.rank) if learner.lora else student.parameters
    parts = {
        "weights": (width * student.parameters + 4 * trained if learner.lora else 4 * trained) / ranks,
        "gradients": 4 * trained / ranks,
        "optimizer": 8 * trained / ranks,  # AdamW, after its first step
    }
    if recipe.teacher.follow == "ema":
        parts["average"] = 4 * trained / ranks
    elif recipe.teacher.follow == "frozen" and not (learner.lora and recipe.teacher.mode == "opsd"):
        parts["teacher"] = teacher_width * teacher.parameters / ranks
    return parts


def adapter_parameters(model: ModelFacts, rank: int) -> int:
    """Parameters of LoRA on every linear layer of attention and of a SwiGLU MLP."""
    hidden = model.hidden_size
    inner = model.intermediate_size
    heads, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
    sides = 2 * (hidden + heads) + 2 * (hidden + kv) + 3 * (hidden + inner)
    return model.layers * rank * sides


def _gathered(model: ModelFacts) -> int:
    """Parameters that a rank holds unsharded at once: embedding, lm_head and two layers."""
    tables = model.vocab_size * model.hidden_size * (1 if model.tied_embeddings else 2)
    return tables + 2 * (model.parameters - tables) // model.layers


def _activations(model: ModelFacts, tokens: int, width: int, checkpointing: bool) -> int:
    """Bytes kept for the backward pass of a decoder with SwiGLU and a fused attention kernel."""
    hidden = model.hidden_size
    heads, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
    # A layer keeps the inputs of norms (also in float32), projections and rotation, and the MLP's four intermediates.
    layer = width * (4 * hidden + 6 * heads + 4 * kv + 4 * model.intermediate_size) + 4 * 2 * hidden
    return tokens * (layer + model.layers * width * hidden if checkpointing else model.layers * layer)
