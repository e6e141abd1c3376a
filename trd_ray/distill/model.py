"""A model as the learner holds it: loaded, with adapters or without, sharded with FSDP2, and read back whole.

    folder -> load() -> [add_adapters()] -> shard() -> HiddenStates -> merged_weights() -> engines, exports

Of several ranks only rank 0 reads the folder, and `shard` gives the others their part (trd_ray.distill.spread).
Full fine-tuning keeps the weights in float32, which makes them their own master weights. With LoRA the frozen weights
have the computation's type, and only the adapters are float32. Every rank must take part in whatever gathers.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trd_ray.config import LearnerConfig, LoRAConfig, ModelConfig
from trd_ray.distill.attention import prepare
from trd_ray.distill.batches import Side
from trd_ray.distill.logits import LogitTransform
from trd_ray.distill.spread import Spread, is_read_once, read_by_rank_0
from trd_ray.errors import UserError

ADAPTER = "default"


class HiddenStates(nn.Module):
    """A causal language model whose forward stops before the vocabulary. All of it lies in one FSDP root.

    With `loss`, the forward goes on to the loss, so that lm_head is used while the root is gathered.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.logits = LogitTransform.of(model.config)

    @property
    def head_VH(self) -> torch.Tensor:
        head: Any = self.model.get_output_embeddings()
        return head.weight

    def forward(self, side: Side, loss: Any = None) -> Any:
        hidden_BTH = self.model.base_model(**side.model_inputs(), use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[side.predicts_N]
        return hidden_NH if loss is None else loss(hidden_NH, self.head_VH)


def load(model: ModelConfig, path: str, dtype: torch.dtype, learner: LearnerConfig) -> Any:
    """The model on the CPU in `dtype`; of several ranks, only rank 0's has weights before `shard`. Collective.

    Raises UserError where its logits are not what the chunked head computes, or its head not what its config says.
    """
    code = {"trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(path, revision=model.revision, **code)

    def whole() -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(path, revision=model.revision, dtype=dtype, **code)
        _require_head_of_config(loaded, path)
        _require_plain_logits(loaded, path)
        prepare(loaded, packed=learner.packing)
        return loaded

    def without_weights() -> Any:
        own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        pinned = {"code_revision": model.revision} if own and model.trust_remote_code and model.revision else {}
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **code, **pinned)
        prepare(built, packed=learner.packing)
        return built

    if not is_read_once(config):
        return whole()
    return read_by_rank_0(whole, without_weights, path, learner.start_timeout_s)


def _require_head_of_config(model: Any, path: str) -> None:
    """transformers unties what differs in the files; vLLM and the other ranks go by the config."""
    says_tied = model.config.get_text_config().tie_word_embeddings and model._tied_weights_keys
    if says_tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise UserError(
            f"config.json of {path} says tie_word_embeddings: true, but its lm_head has weights of its own, which the "
            "engines would not load: set it to false there, or choose another checkpoint"
        )


@torch.no_grad()
def _require_plain_logits(model: PreTrainedModel, path: str) -> None:
    """Compare with the model's own logits: its code may do what no config entry tells that preflight knows."""
    ids_BT = torch.arange(2).unsqueeze(0)
    wrapped = HiddenStates(model)
    plain = wrapped.logits(
        nn.functional.linear(model.base_model(input_ids=ids_BT).last_hidden_state, wrapped.head_VH).float()
    )
    own = model(input_ids=ids_BT).logits.float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2  # rounding changes less, a bias more
    if not (own - plain).norm() <= tolerance * own.norm():
        raise UserError(
            f"the logits of {path} ({type(model).__name__}) are not the product of its last hidden states and lm_head, "
            "scaled and capped as its config says, which is all that the chunked head computes: choose a model "
            "without a bias or other change of its logits"
        )


def add_adapters(model: PreTrainedModel, lora: LoRAConfig) -> None:
    """Freeze the model and give it LoRA layers (PEFT), in float32, that change nothing yet."""
    model.requires_grad_(False)
    try:
        model.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]
                lora_dropout=lora.dropout,
                target_modules=lora.targets or "all-linear",  # all but lm_head
                task_type="CAUSAL_LM",
            ),
            ADAPTER,
        )
    except ValueError as e:
        raise UserError(
            f"learner.lora.targets {lora.targets} fits no module of {type(model).__name__}: leave it empty for all "
            f"linear layers of attention and MLP ({' '.join(str(e).split())[:200]})"
        ) from e
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert "lora_" in name, name
            p.data = p.data.float()


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block, the model computes with its frozen weights alone."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    # PEFT's own switch also turns requires_grad off and on, but FSDP has read that once and for all.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def shard(
    model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype, *, cpu_offload: bool = False, compiled: bool = False
) -> HiddenStates:
    """Shard every decoder layer and the root with FSDP2. Parameters keep their type, computation runs in `dtype`.

    Decoder layers are what transformers itself keeps on one device when it splits a model. The root group holds the
    embeddings, the final norm and lm_head. It stays gathered after a forward, so that the head is not gathered for
    every chunk. Shards move to the mesh's device one group at a time.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    on_gpu = mesh.device_type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if cpu_offload else OffloadPolicy()
    wrapped = HiddenStates(model)
    # A group is whole on every rank only between these two calls.
    give = Spread(model, _device_of(mesh)) if is_read_once(model.config) else None
    for layer in [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]:
        if compiled:
            # The method is compiled, not the module, so that FSDP's hooks stay outside of the graph.
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if give:
            give(layer)
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offload)
    if give:
        give(wrapped)
    fully_shard(wrapped, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)
    # The loss is already divided by the global token count: gradients are summed over ranks, not averaged.
    for module in wrapped.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return wrapped


def _device_of(mesh: DeviceMesh) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")


class MovingAverage:
    """The teacher of teacher.follow=ema, of which a rank holds its shard.

    After every update: average <- decay * average + (1 - decay) * student.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, p in self.parameters.items():
            yield _local(self.average[name]), _local(p.detach())

    @torch.no_grad()
    def update(self) -> None:
        for average, value in self._pairs():
            average.lerp_(value, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self, model: FSDPModule) -> Iterator[None]:
        """Within the block, the student's parameters hold the average. No graph may be alive across its ends."""
        model.reshard()  # the root would keep what it gathered before
        self._swap()
        try:
            yield
        finally:
            model.reshard()
            if torch.cuda.is_available():  # offloaded shards may still be on their way to the GPU
                torch.cuda.synchronize()
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, value in self._pairs():
            kept = value.clone()
            value.copy_(average)
            average.copy_(kept)


def merged_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes that `merged_weights` will give."""
    return [(_merged_name(name), tuple(p.shape)) for name, p in model.named_parameters() if ".lora_" not in name]


@torch.no_grad()
def merged_weights(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Full parameters under their checkpoint names, with adapters added in float32. Collective."""
    adapted = {f"{name}.base_layer.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, p in model.named_parameters():
        if ".lora_" in name:
            continue
        # Where nothing is added, the cast comes before the gather: fewer bytes move.
        weight = _full(p.detach().to(device, p.dtype if name in adapted else dtype))
        if name in adapted:
            layer: Any = adapted[name]
            a_RI, b_OR = (_full(part[ADAPTER].weight.to(device)) for part in (layer.lora_A, layer.lora_B))
            change_OI = layer.scaling[ADAPTER] * (b_OR.float() @ a_RI.float())
            weight = (weight.float() + (change_OI.T if layer.fan_in_fan_out else change_OI)).to(dtype)
        yield _merged_name(name), weight


@torch.no_grad()
def adapter_tensors(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Full adapters under PEFT's names, in float32 or in `dtype`. Collective."""
    for name, p in model.named_parameters():
        if ".lora_" in name:
            yield (
                "base_model.model." + name.replace(f".{ADAPTER}.", "."),
                _full(p.detach().to(device, dtype or p.dtype)),
            )


def packed_adapter(model: Any, base: str, tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The files of a PEFT folder with these adapters and `base` as their model."""
    config = model.peft_config[ADAPTER].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    as_text = json.dumps(
        config, indent=2, sort_keys=True, default=lambda o: sorted(o) if isinstance(o, set) else str(o)
    )
    return {"adapter_config.json": as_text.encode(), "adapter_model.safetensors": safetensors.torch.save(tensors)}


def _merged_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _full(p: torch.Tensor) -> torch.Tensor:
    return p.full_tensor() if isinstance(p, DTensor) else p


def _local(p: torch.Tensor) -> torch.Tensor:
    return p.to_local() if isinstance(p, DTensor) else p
