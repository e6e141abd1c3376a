"""Attention over sequences that lie end to end in one row, where each sees exactly itself.

    Side.model_inputs() -> transformers model -> segments() in every layer -> hidden states as of each sequence alone

`prepare` makes a model use it. Lengths travel as the keyword arguments that transformers hands on to FlashAttention.
No [T, T] mask is ever built. On a GPU, half precision goes to torch's own FlashAttention for variable lengths.
Everything else goes to scaled_dot_product_attention, a call a sequence, which is also the fastest form on a CPU.

Shapes: B rows, T tokens of a row, H heads, K key-value heads, D head size, Q queries and S keys of a block.
"""

from inspect import signature
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from trd_ray.distill.batches import Example, collate
from trd_ray.errors import UserError

NAME = "trd_segments"
_BLOCK = 256  # queries whose scores exist at a time where they are windowed or capped
_LAYERS = {"full_attention", "sliding_attention"}
# Arguments of a call that segments() may ignore. Any other that it does not name might change the scores.
_HARMLESS = {"position_ids", "use_cache", "output_hidden_states", "output_router_logits", "return_dict"}
_REMEDY = "set learner.packing=false"
# The kernel takes several heads of queries to one of keys anyway; torch 2.11 does not have the argument.
_IS_TOLD_OF_GROUPS = "enable_gqa" in signature(varlen_attn).parameters


def prepare(model: PreTrainedModel, packed: bool) -> None:
    """Make a loaded model, not yet sharded, attend as `collate(..., packed)` needs it.

    Raises UserError for a model that cannot keep packed sequences apart. One without weights, on "meta", is not asked
    to show that it can. Padded rows need nothing special, except where a model caps its attention scores: transformers'
    own `sdpa` leaves the cap out without a word.
    """
    config = model.config.get_text_config(decoder=True)
    # Models that support FlashAttention tell the attention function all that they tell others in a mask.
    able = model._can_set_attn_implementation() and model._supports_flash_attn
    if not packed:
        if able and getattr(config, "attn_logit_softcapping", None) is not None:
            model.set_attn_implementation(NAME)
        return
    architecture = type(model).__name__
    if not able:
        raise UserError(f"{architecture} does not let its attention be replaced, which packing needs: {_REMEDY}")
    if set(getattr(config, "layer_types", None) or ()) - _LAYERS:
        raise UserError(
            f"{architecture} has layers other than full and sliding-window attention, which carry packed sequences' "
            f"states over into one another: {_REMEDY}"
        )
    model.set_attn_implementation(NAME)
    if model.device.type != "meta":
        _require_isolation(model)


@torch.no_grad()
def _require_isolation(model: PreTrainedModel) -> None:
    """Run two packed sequences and see: no config entry tells what a model does with lengths and positions."""
    training = model.training
    model.eval()
    one = Example(0, [0, 1], [0], [2])
    two = Example(1, [3, 4, 5], [0], [6])

    def hidden(examples: list[Example]) -> torch.Tensor:
        inputs = collate(examples, 0, packed=True).to(model.device).student.model_inputs()
        return model.base_model(**inputs, use_cache=False).last_hidden_state[0, -two.sides[0] :].float()

    alone, behind = hidden([two]), hidden([one, two])
    model.train(training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2  # rounding changes less, a leak more
    if not (behind - alone).norm() <= tolerance * alone.norm():
        raise UserError(
            f"{type(model).__name__} gives a sequence other hidden states when another is packed before it: {_REMEDY}"
        )


def segments(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention [B, T, H, D] as transformers calls it: within each sequence, or within each row without lengths.

    Raises UserError for whatever would change the scores and is not computed here.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    unknown = [k for k, v in others.items() if k not in _HARMLESS and v is not None and v is not False]
    if attention_mask is not None or not causal or query_BHTD.shape[2] != key_BKTD.shape[2]:
        unknown.append("a mask, a cache or attention to later tokens")
    if unknown:
        raise UserError(
            f"the attention of {type(module).__name__} needs {', '.join(unknown)}, which packing lacks: {_REMEDY}"
        )
    if cu_seq_lens_q is None:
        out_BHTD = _causal(query_BHTD, key_BKTD, value_BKTD, scaling, sliding_window, softcap, dropout)
        return out_BHTD.transpose(1, 2), None
    if _flash_takes(query_BHTD, value_BKTD) and softcap is None and not dropout:
        query_THD, key_TKD, value_TKD = (x.squeeze(0).transpose(0, 1) for x in (query_BHTD, key_BKTD, value_BKTD))
        told: dict[str, Any] = {"enable_gqa": query_BHTD.shape[1] != key_BKTD.shape[1]} if _IS_TOLD_OF_GROUPS else {}
        out_THD: Any = varlen_attn(
            query_THD,
            key_TKD,
            value_TKD,
            cu_seq_lens_q,
            cu_seq_lens_k,
            max_length_q,  # type: ignore[arg-type]
            max_length_k,  # type: ignore[arg-type]
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            **told,
        )
        return out_THD.unsqueeze(0), None
    out_BHTD = _each(query_BHTD, key_BKTD, value_BKTD, cu_seq_lens_q, scaling, sliding_window, softcap, dropout)
    return out_BHTD.transpose(1, 2), None


AttentionInterface.register(NAME, segments)
# This gives no mask at all, unless there is padding, which it would hand on as [B, T].
AttentionMaskInterface.register(NAME, flash_attention_mask)


def _flash_takes(query_BHTD: torch.Tensor, value_BKTD: torch.Tensor) -> bool:
    size = query_BHTD.shape[-1]
    return (
        query_BHTD.is_cuda
        and query_BHTD.dtype in (torch.bfloat16, torch.float16)
        and size == value_BKTD.shape[-1]
        and size % 8 == 0
        and size <= 256
        and torch.cuda.get_device_capability(query_BHTD.device) >= (8, 0)
    )


@torch.compiler.disable()  # a loop over lengths that are data would be compiled again for each micro-batch
def _each(
    query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor, starts_S1: torch.Tensor, *settings: Any
) -> torch.Tensor:
    lengths = starts_S1.diff().tolist()
    parts = zip(*(x.split(lengths, dim=2) for x in (query_BHTD, key_BKTD, value_BKTD)), strict=True)
    return torch.cat([_causal(q, k, v, *settings) for q, k, v in parts], dim=2)


def _causal(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    if softcap is None and (window is None or window >= query_BHTD.shape[2]):
        grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
        return scaled_dot_product_attention(
            query_BHTD, key_BKTD, value_BKTD, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
    return _blocks(query_BHTD, key_BKTD, value_BKTD, scaling, window, softcap, dropout)


@torch.compiler.disable()
def _blocks(
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention of a block of queries at a time to the keys that any of them sees, so that memory is linear in T."""
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    tokens = query_BHTD.shape[2]
    key_BHTD, value_BHTD = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key_BKTD, value_BKTD))
    place_T = torch.arange(tokens, device=query_BHTD.device)
    scale = scaling if scaling is not None else query_BHTD.shape[-1] ** -0.5
    size = max(_BLOCK, window or 0)
    out = []
    for begin in range(0, tokens, size):
        end = min(begin + size, tokens)
        first = 0 if window is None else max(0, begin - window + 1)
        behind_QS = place_T[begin:end, None] - place_T[first:end]
        seen_QS = behind_QS >= 0 if window is None else (behind_QS >= 0) & (behind_QS < window)
        q, k, v = query_BHTD[:, :, begin:end], key_BHTD[:, :, first:end], value_BHTD[:, :, first:end]
        if softcap is None:
            o = scaled_dot_product_attention(q, k, v, attn_mask=seen_QS, scale=scale, dropout_p=dropout)
        else:
            # The scores are computed again in the backward pass, which would otherwise keep every block's.
            o = checkpoint(_capped, q, k, v, seen_QS, scale, softcap, dropout, use_reentrant=False)
        out.append(o)
    return torch.cat(out, dim=2)


def _capped(
    query_BHQD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    seen_QS: torch.Tensor,
    scale: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """Scores capped at +-softcap by tanh, as in Gemma 2 (arXiv:2408.00118, section 2)."""
    scores_BHQS = softcap * torch.tanh(query_BHQD @ key_BHSD.mT * (scale / softcap))
    weights_BHQS = scores_BHQS.masked_fill(~seen_QS, -torch.inf).softmax(-1, dtype=torch.float32).to(query_BHQD.dtype)
    return drop(weights_BHQS, dropout) @ value_BHSD
