"""How much memory an engine and a learner rank take, in GiB, estimated from a recipe and the facts of its models.

    recipe, ModelFacts  ->  engine_gib(), sequence_gib(), rank_gib(), rank_host_gib()  ->  GiB by what it holds
                        ->  reader_gib()                                               ->  GiB that rank 0 takes besides

- Weights, gradients, optimizer state and KV cache are counted exactly.
- Activations, what backward makes besides, and the loss are counted by hand, from the shapes that they have.
- What processes and contexts take on top are round figures.
"""

import math
from collections.abc import Mapping

from trd_ray.config import Each, EngineConfig, Recipe, Rest, of_each
from trd_ray.models import ModelFacts

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# A process with torch and Ray loaded and no model (measured). An engine is three: its actor, vLLM's core and worker.
HOST_OVERHEAD_GIB = {"engine": 2.5, "learner": 1.0, "verifier": 0.4}
_ENGINE_GPU_OVERHEAD_GIB = 2.0  # CUDA context and graphs, and the logits of vLLM's profiling run
_LARGE_GPU_GIB = 70  # vLLM prefills in larger chunks on GPUs from this size on
_PREFILL_TOKENS = {"large": 16384, "small": 8192}  # a chunk, as vLLM chooses it (EngineArgs.get_batch_defaults)
_TRAINED = ("weights", "optimizer", "average")  # what of a rank's shards waits in host memory if all weights train
SYNC_BUFFER_BYTES = 256 * 2**20  # of packed tensors, which the transfer sends at once
_LEARNER_GPU_OVERHEAD_GIB = 2.0  # CUDA and NCCL contexts, fragmentation
_RESTING_GPU_GIB = {"graphs": 3.0, "context": 1.5}  # of an engine that rests: CUDA graphs and what they work in
_CHUNK_BYTES = 5  # an entry of [C, V] takes its gradient, and for a quarter of the chunk the logits of both sides
_CHUNK_GIB = 0.2  # what the elementwise part makes of a block


def engine_gib(
    engine: EngineConfig,
    recipe: Recipe,
    model: ModelFacts,
    gpu_gib: float | None,
    sync: str | None = None,
    utilization: float | None = None,
) -> tuple[dict[str, float], float]:
    """Memory of each GPU of an engine (or of the host, without `gpu_gib`) in GiB, and how much of it is KV cache.

    On a GPU vLLM takes the share `utilization`, by default memory_utilization, and gives the cache what weights and
    runtime leave, below 0 if they leave nothing. What receives weights, by the backend `sync`, lies outside that
    share. On a CPU the cache has the size that it is given, in whole GiB.
    """
    width = BYTES[engine.dtype or recipe.learner.dtype]
    weights = model.parameters * width / engine.tensor_parallel / GIB
    parts = {"weights": weights}
    if engine is recipe.sampler and recipe.learner.lora and recipe.sync.lora == "adapter":
        # Counted whole on each GPU: vLLM splits only one of an adapter's two sides.
        adapters = adapters_at_once(recipe) * adapter_parameters(model, recipe.learner.lora.rank) * width
        parts["adapters"] = adapters / GIB
    receiving = sync_bytes(sync, model, width) / GIB
    extra = {"weight sync": receiving} if receiving else {}
    if gpu_gib is None:
        kv = float(max(1, round(engine.cpu_kv_cache_gib)))
        return parts | {"KV cache": kv, "process": HOST_OVERHEAD_GIB["engine"]} | extra, kv
    runtime = _ENGINE_GPU_OVERHEAD_GIB + _prefill_bytes(engine, model, width, gpu_gib) / GIB
    kv = (utilization or engine.memory_utilization) * gpu_gib - sum(parts.values()) - runtime
    return parts | {"KV cache": max(0.0, kv), "runtime": runtime} | extra, kv


def engine_rest_gib(awake: Mapping[str, float], rest: Rest) -> dict[str, float]:
    """What is left on each GPU of an engine at rest, of what it holds `awake`. Its KV cache never is."""
    kept = {part: awake[part] for part in ("weights", "adapters") if rest == "keep" and part in awake}
    return kept | _RESTING_GPU_GIB


def adapters_at_once(recipe: Recipe) -> int:
    """Adapters that an engine holds: a new one, and those that requests under way began with.

    While weights are sent, the rollouts under way are at most max_staleness versions old.
    """
    staleness = recipe.stream.max_staleness
    return 1 + max(1, staleness if isinstance(staleness, int) else 1)


def _prefill_bytes(engine: EngineConfig, model: ModelFacts, width: int, gpu_gib: float) -> float:
    """Activations of a chunk of prefill: the MLP's gate, up and product, and the residual stream four times."""
    tokens = engine.extra.get("max_num_batched_tokens")
    tokens = tokens or _PREFILL_TOKENS["large" if gpu_gib >= _LARGE_GPU_GIB else "small"]
    tokens = min(tokens, engine.max_concurrent * (engine.max_model_len or model.max_positions))
    return tokens * width * (3 * model.intermediate_size / engine.tensor_parallel + 4 * model.hidden_size)


def sync_bytes(backend: str | None, model: ModelFacts, width: int) -> int:
    """What one side of a weight sync takes while it lasts, sender and receiver alike; 0 without weights to send.

    - nccl, ipc: two packed buffers in turn. A buffer is full when it exceeds its size, so it may hold a whole tensor
      more. Besides, there is the largest tensor itself: gathered by the sender, put together by the receiver.
    - gloo: a tensor at a time, once as it travels and once as it is loaded or gathered.
    - adapter: files of some hundred MB, in host memory (see `object_store_gib`).
    """
    largest = largest_tensor(model) * width
    if backend in ("nccl", "ipc"):
        return 2 * (SYNC_BUFFER_BYTES + largest) + largest
    return 2 * largest if backend == "gloo" else 0


def largest_tensor(model: ModelFacts) -> int:
    """How many numbers the largest matrix of the model has: mostly the embedding's."""
    heads = model.attention_heads * model.head_dim
    return model.hidden_size * max(model.vocab_size, model.intermediate_size, heads)


def object_store_gib(recipe: Recipe, student: ModelFacts) -> float:
    """What a run puts into Ray's object store of its node, at least the half GiB that Ray's own objects need.

    - the rows of the steps that exist at a time: one that trains, one that is made, and one for each version of
      staleness. A token of a response takes 12 bytes (id, log-probability, text), and 4 more as part of an example.
    - what the learner finds at each trained token of one step: 8 bytes, as sent by ranks and as read by the driver
    - adapters in the engines' type (sync.lora=adapter): those that are served, and those that come after them
    """
    longest = student.max_positions
    sampled = min(recipe.sampler.max_response_tokens or longest, recipe.sampler.max_model_len or longest)
    refiners = [one.refiner for one in recipe.by_teacher.values()]
    refined = [min(one.max_response_tokens or longest, one.max_model_len or longest) for one in refiners]
    prompts = [min(one.max_prompt_tokens or longest, one.max_model_len or longest) for one in refiners]
    row = 12 * sampled + recipe.refines * max(16 * y_r + 8 * seen for y_r, seen in zip(refined, prompts, strict=True))
    # How long a reference is, only the data knows: as long as an attempt may be.
    trained = max({"y_o": sampled, "y_r": max(refined), "reference": sampled}[y] for y in recipe.trains_on)
    found = recipe.rollouts_per_step * trained * 2 * 8 if recipe.diagnostics.tokens else 0
    staleness = recipe.stream.max_staleness
    steps = 2 + (staleness if isinstance(staleness, int) else 1)
    adapters = 0
    if recipe.sync.lora == "adapter" and recipe.learner.lora:
        width = BYTES[recipe.sampler.dtype or recipe.learner.dtype]
        adapters = adapters_at_once(recipe) * width * adapter_parameters(student, recipe.learner.lora.rank)
    return max(0.5, math.ceil((steps * recipe.rollouts_per_step * row + found + adapters) / GIB * 10) / 10)


def sequence_gib(engine: EngineConfig, recipe: Recipe, model: ModelFacts, tokens: int) -> float:
    """KV cache of one sequence on each GPU. vLLM copies key-value heads where there are more GPUs than heads."""
    heads = max(1.0, model.kv_heads / engine.tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * BYTES[engine.dtype or recipe.learner.dtype] * tokens / GIB


def rank_gib(
    recipe: Recipe,
    student: ModelFacts,
    teacher: Each[ModelFacts],
    on_gpu: bool,
    longest_sequence_tokens: int = 0,
    sync: str | None = None,
    received_gib: float = 0.0,
) -> dict[str, float]:
    """Memory of one FSDP rank: what trains in float32, computation in learner.dtype, heads gathered for the loss.

    Every teacher has its shards, and one at a time is gathered. `sync` is the backend that sends the weights, if any
    does. Where an engine that rested without its weights gets them on the same GPU, `received_gib` is what that takes.
    """
    learner = recipe.learner
    width = BYTES[learner.dtype]
    tokens = max(learner.tokens_per_micro_batch, longest_sequence_tokens)
    head = student.vocab_size * student.hidden_size
    shards = _shards(recipe, student, teacher)
    teaching = max((size * _gathered(model) for model, size in _held(recipe, teacher).values()), default=0)
    of_a_step = {
        "gathered": 2 * width * _gathered(student) + teaching,
        "loss chunk": _CHUNK_BYTES * learner.chunk_tokens * student.vocab_size + _CHUNK_GIB * GIB * on_gpu,
        "head gradient": 0 if learner.lora else (4 + width) * head,
        "activations": _activations(student, tokens, width, learner.activation_checkpointing),
        "backward": _backward(student, tokens, width, bool(learner.lora)),
    }
    parts = {**shards, **of_a_step}
    # A sync comes between steps, and may use what a step has freed.
    sending = sync_bytes(sync, student, width) + received_gib * GIB
    parts["weight sync"] = max(0, sending - sum(of_a_step.values()))
    if not on_gpu and learner.ranks == 1:  # only shards are moved to a GPU; of several ranks, see reader_gib
        parts["loading"] = max(0, _loading(recipe, student, teacher, on_gpu) - sum(parts.values()))
    if learner.cpu_offload and on_gpu:
        parts = {name: size for name, size in parts.items() if name not in shards}
    gib = {name: size / GIB for name, size in parts.items() if size}
    return gib | ({"runtime": _LEARNER_GPU_OVERHEAD_GIB} if on_gpu else {"process": HOST_OVERHEAD_GIB["learner"]})


def rank_rest_gib(recipe: Recipe, student: ModelFacts, teacher: Each[ModelFacts]) -> dict[str, float]:
    """What is left on the GPU of a rank at rest: what never trains, and adapters with their optimizer.

    Where all weights train, they and their optimizer wait in host memory.
    """
    learner = recipe.learner
    parts = {} if learner.cpu_offload else _shards(recipe, student, teacher)
    moved = {"gradients"} if learner.lora else {"gradients", *_TRAINED}
    left = {name: size / GIB for name, size in parts.items() if name not in moved}
    return left | {"context": _RESTING_GPU_GIB["context"]}


def rank_host_gib(recipe: Recipe, student: ModelFacts, teacher: Each[ModelFacts]) -> float:
    """Host memory of every rank on a GPU: what it saves of its shards, and the shards themselves that wait there.

    With cpu_offload all do; in turns those of weights that all train.
    """
    shards = _shards(recipe, student, teacher)
    waits = recipe.takes_turns and not recipe.learner.lora
    offloaded = sum(size for name, size in shards.items() if recipe.learner.cpu_offload or (waits and name in _TRAINED))
    return HOST_OVERHEAD_GIB["learner"] + (_saved(shards) + offloaded) / GIB


def reader_gib(recipe: Recipe, student: ModelFacts, teacher: Each[ModelFacts], on_gpu: bool) -> float:
    """Host memory that rank 0 takes on top of what every rank does: it reads each model whole, for all of them.

    On GPUs it also copies the whole export to the host, while the next steps train.
    """
    loading = _loading(recipe, student, teacher, on_gpu)
    if not on_gpu:
        several = recipe.learner.ranks > 1
        return max(0.0, loading / GIB - sum(rank_gib(recipe, student, teacher, on_gpu).values())) if several else 0.0
    saved = _saved(_shards(recipe, student, teacher))
    export = BYTES[recipe.learner.dtype] * student.parameters
    return max(loading - saved, export) / GIB


def _loading(recipe: Recipe, student: ModelFacts, teacher: Each[ModelFacts], on_gpu: bool) -> float:
    """The most bytes of the host that reading the models takes. Each is sharded before the next one is read."""
    learner = recipe.learner
    shards = _shards(recipe, student, teacher)
    sharded = 0 if on_gpu else shards["weights"]
    found = [(BYTES[learner.dtype] if learner.lora else 4) * student.parameters, sharded]
    for part, (model, size) in _held(recipe, teacher).items():
        found.append(sharded + model.parameters * size)
        sharded += 0 if on_gpu else shards[part]
    return max(found)


def _held(recipe: Recipe, teacher: Each[ModelFacts]) -> dict[str, tuple[ModelFacts, int]]:
    """The teachers that have weights of their own in the learner: how the part is called -> the model, bytes a weight.

    A frozen OPSD teacher is the student with its adapters off, where it has some. One that moves is the student too.
    A loss without a teacher needs none.
    """
    if not recipe.loss.has_teacher:
        return {}
    facts = of_each(teacher)
    found = {}
    for name, one in recipe.by_teacher.items():
        if one.teacher.follow == "frozen" and not (one.learner.lora and one.teacher.mode == "opsd"):
            found[f"teacher {name}".strip()] = facts[name], BYTES[one.teacher.dtype or one.learner.dtype]
    return found


def _saved(shards: dict[str, float]) -> float:
    """The bytes of its shards that a rank copies for a checkpoint, while the next steps train."""
    # The weights that train are as large as their gradients.
    return sum(shards.get(name, 0) for name in ("optimizer", "average")) + shards["gradients"]


def _shards(recipe: Recipe, student: ModelFacts, teacher: Each[ModelFacts]) -> dict[str, float]:
    """What FSDP spreads over the ranks: bytes on each of them."""
    learner = recipe.learner
    ranks = learner.ranks
    width = BYTES[learner.dtype]
    trained = adapter_parameters(student, learner.lora.rank) if learner.lora else student.parameters
    parts = {
        "weights": (width * student.parameters + 4 * trained if learner.lora else 4 * trained) / ranks,
        "gradients": 4 * trained / ranks,
        "optimizer": 8 * trained / ranks,  # AdamW, after its first step
    }
    if any(one.teacher.follow == "ema" for one in recipe.by_teacher.values()):
        parts["average"] = 4 * trained / ranks
    held = _held(recipe, teacher)
    return parts | {part: size * model.parameters / ranks for part, (model, size) in held.items()}


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


def _backward(model: ModelFacts, tokens: int, width: int, lora: bool) -> int:
    """Bytes that the backward pass of one layer makes and frees again, on top of what was kept for it.

    - the gradients of the MLP's product, gate and up projection, each as wide as the MLP
    - with LoRA, the adapters' contributions to two of these before they are added
    - FlashAttention's accumulator of the queries' gradient, in float32
    - the keys' and the values' gradients for every query head, before those of a group are summed

    They do not all exist at one time, but PyTorch's allocator keeps the blocks of one for the next only where they fit.
    """
    heads = model.attention_heads * model.head_dim
    grouped = 2 * heads if model.kv_heads < model.attention_heads else 0
    return tokens * (width * ((3 + 2 * lora) * model.intermediate_size + grouped) + 4 * heads)
