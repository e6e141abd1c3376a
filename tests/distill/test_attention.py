"""Packed sequences get the hidden states and gradients that each has alone in transformers' own eager attention.

Models are a few thousand random parameters; `segments` itself is held against naive float64 attention.
"""

import copy
import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from trd_ray.distill import attention
from trd_ray.distill.attention import NAME, prepare, segments
from trd_ray.distill.batches import Example, Side, collate
from trd_ray.errors import UserError

VOCAB = 40
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CONFIGS = {
    "qwen3": Qwen3Config(**COMMON),
    "qwen3, sliding upper layer": Qwen3Config(**COMMON, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3 mixture": Qwen3MoeConfig(**COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "qwen2": Qwen2Config(**COMMON),
    "llama": LlamaConfig(**COMMON),
    "mistral": MistralConfig(**COMMON, sliding_window=None),
    "mistral, sliding": MistralConfig(**COMMON, sliding_window=5),
    # Scores are capped where they matter, and the window is shorter than a sequence.
    "gemma2": Gemma2Config(**COMMON, attn_logit_softcapping=2.0, sliding_window=5, query_pre_attn_scalar=4),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=2, n_positions=64, initializer_range=0.3),
}
MODELS = pytest.mark.parametrize("name", CONFIGS)
LENGTHS = [7, 1, 19, 12, 7]


def make(name: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    # A model's attention is named in its config, which models would share.
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation=attention).eval()


def sequences(lengths: list[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def side(ids: list[list[int]], packed: bool = True) -> Side:
    return collate([Example(i, s[:1], s[:1], s[1:]) for i, s in enumerate(ids)], 0, packed).student


def hidden(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def gradients(model: PreTrainedModel, hidden_TH: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss that weighs every hidden state differently."""
    weight_TH = torch.randn(hidden_TH.shape, generator=torch.Generator().manual_seed(2))
    loss = (hidden_TH * weight_TH).sum() / hidden_TH.shape[0]
    used = [p for n, p in model.named_parameters() if "lm_head" not in n]
    return list(torch.autograd.grad(loss, used, allow_unused=True, materialize_grads=True))


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())


@MODELS
def test_packed_hidden_states_and_gradients_are_those_of_each_sequence_alone(name):
    ids, packed, alone = sequences(), make(name), make(name, "eager")
    prepare(packed, packed=True)
    ours_TH = hidden(packed, side(ids).model_inputs())[0]
    theirs_TH = torch.cat([hidden(alone, {"input_ids": torch.tensor([s])})[0] for s in ids])
    assert_equal([ours_TH], [theirs_TH])
    assert_equal(gradients(packed, ours_TH), gradients(alone, theirs_TH))


@torch.no_grad()
@MODELS
def test_changing_one_packed_sequence_changes_no_bit_of_another(name):
    model, ids = make(name), sequences()
    prepare(model, packed=True)
    changed = [*ids[:2], sequences(seed=5)[2], *ids[3:]]
    before, after = (hidden(model, side(s).model_inputs())[0].split(LENGTHS) for s in (ids, changed))
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True, True]


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3", "mistral, sliding"])
def test_packing_equals_transformers_own_with_its_dense_mask(name):
    ours, theirs, packed = make(name), make(name), side(sequences())
    prepare(ours, packed=True)
    dense = {"input_ids": packed.input_ids_BT, "position_ids": packed.position_ids_BT}
    assert_equal([hidden(ours, packed.model_inputs())], [hidden(theirs, dense)])


@torch.no_grad()
@MODELS
def test_padded_hidden_states_are_those_of_each_sequence_alone(name):
    # transformers' sdpa leaves Gemma 2's cap out, so that padding needs preparation too.
    ids, padded, alone = sequences(), make(name), make(name, "eager")
    prepare(padded, packed=False)
    hidden_BTH = hidden(padded, side(ids, packed=False).model_inputs())
    for b, s in enumerate(ids):
        assert_equal([hidden_BTH[b, : len(s)]], [hidden(alone, {"input_ids": torch.tensor([s])})[0]])


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_activation_checkpointing_changes_no_gradient(name):
    plain, checkpointed, inputs = make(name), make(name), side(sequences()).model_inputs()
    for model in (plain, checkpointed):
        prepare(model, packed=True)
    checkpointed.gradient_checkpointing_enable()
    checkpointed.train()
    both = [gradients(m, hidden(m, inputs)[0]) for m in (plain, checkpointed)]
    assert_equal(both[1], both[0])


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_a_compiled_layer_changes_no_gradient_and_is_compiled_once(name):
    plain, compiled = make(name), make(name)
    torch.compiler.reset()
    for model in (plain, compiled):
        prepare(model, packed=True)
    layer = compiled.base_model.layers[0]
    layer.forward = torch.compile(layer.forward, dynamic=True, backend="aot_eager")
    for i, lengths in enumerate(([9, 14, 3, 2, 5], [5, 6], [20, 1, 2, 3, 4, 4])):
        inputs = side(sequences(lengths)).model_inputs()
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            both = [gradients(m, hidden(m, inputs)[0]) for m in (plain, compiled)]
        assert_equal(both[1], both[0])


def naive(q_THD, k_TKD, v_TKD, lengths, scale, window, softcap) -> torch.Tensor:
    """Attention one query at a time, in float64."""
    out, groups, start = [], q_THD.shape[1] // k_TKD.shape[1], 0
    q, k, v = q_THD.double(), *(x.double().repeat_interleave(groups, 1) for x in (k_TKD, v_TKD))
    for n in lengths:
        for t in range(start, start + n):
            first = start if window is None else max(start, t - window + 1)
            scores_HS = torch.einsum("hd,shd->hs", q[t], k[first : t + 1]) * scale
            if softcap is not None:
                scores_HS = softcap * torch.tanh(scores_HS / softcap)
            out.append(torch.einsum("hs,shd->hd", scores_HS.softmax(-1), v[first : t + 1]))
        start += n
    return torch.stack(out)


# Lengths beyond the 256 queries of a block; windows shorter and longer than a block.
SETTINGS = pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (6, None), (300, None), (None, 1.5), (6, 1.5), (300, 1.5)]
)


def random_qkv(heads: int, kv_heads: int, tokens: int, size: int) -> list[torch.Tensor]:
    """As a model's projections give them: [1, heads, T, size] over memory of [T, heads, size]."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, tokens, n, size, generator=generator).transpose(1, 2).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]


@SETTINGS
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_segments_are_naive_attention_and_its_gradient(kv_heads, window, softcap):
    lengths = [1, 300, 7]
    qkv = random_qkv(4, kv_heads, sum(lengths), 8)
    starts_S1 = torch.tensor([0, 1, 301, 308], dtype=torch.int32)
    ours_THD = segments(
        torch.nn.Module(), *qkv, None, scaling=0.5, sliding_window=window, softcap=softcap,
        cu_seq_lens_q=starts_S1, cu_seq_lens_k=starts_S1, max_length_q=300, max_length_k=300,
    )[0][0]  # fmt: skip
    theirs_THD = naive(*(x[0].transpose(0, 1) for x in qkv), lengths, 0.5, window, softcap)
    weight_THD = torch.randn(ours_THD.shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(ours_THD.double(), theirs_THD, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((ours_THD * weight_THD).sum(), qkv)
    theirs = torch.autograd.grad((theirs_THD * weight_THD).sum(), qkv)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@SETTINGS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-4)])
def test_segments_on_a_gpu_are_naive_attention_and_its_gradient(dtype, tolerance, window, softcap):
    lengths = [1, 300, 7]
    leaves = [x.detach().cuda().to(dtype).requires_grad_() for x in random_qkv(4, 2, sum(lengths), 64)]
    starts_S1 = torch.tensor([0, 1, 301, 308], dtype=torch.int32, device="cuda")
    ours_THD = segments(
        torch.nn.Module(), *leaves, None, scaling=0.125, sliding_window=window, softcap=softcap,
        cu_seq_lens_q=starts_S1, cu_seq_lens_k=starts_S1, max_length_q=300, max_length_k=300,
    )[0][0]  # fmt: skip
    theirs_THD = naive(*(x[0].transpose(0, 1) for x in leaves), lengths, 0.125, window, softcap)
    weight_THD = torch.randn(ours_THD.shape, generator=torch.Generator().manual_seed(4)).cuda()
    ours = [ours_THD, *torch.autograd.grad((ours_THD * weight_THD).sum(), leaves)]
    theirs = [theirs_THD, *torch.autograd.grad((theirs_THD * weight_THD).sum(), leaves)]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


@pytest.mark.parametrize("told", [True, False])
def test_a_kernel_that_has_no_argument_for_grouped_heads_is_not_given_it(monkeypatch, told):
    """As that of torch 2.11, which takes such heads as they come."""
    given = {}

    def kernel(q, k, v, *lengths, scale, window_size, **more):
        given.update(more)
        return q

    assert attention._IS_TOLD_OF_GROUPS, "the installed torch has the argument"
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_flash_takes", lambda query, value: True)
    monkeypatch.setattr(attention, "_IS_TOLD_OF_GROUPS", told)
    starts_S1 = torch.tensor([0, 3], dtype=torch.int32)
    segments(
        torch.nn.Module(), *random_qkv(4, 2, 3, 8), None, cu_seq_lens_q=starts_S1, cu_seq_lens_k=starts_S1,
        max_length_q=3, max_length_k=3,
    )  # fmt: skip
    assert given == ({"enable_gqa": True} if told else {})


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_attention_dropout_is_applied(softcap):
    ones = torch.ones(1, 2, 64, 8)
    out = segments(torch.nn.Module(), ones, ones, ones, None, dropout=0.5, softcap=softcap)[0]
    assert out.std() > 0.1 and abs(out.mean() - 1) < 0.1


@pytest.mark.parametrize(
    "change",
    [{"attention_mask": torch.ones(1, 1, 4, 4)}, {"attention_mask": None, "is_causal": False},
     {"attention_mask": None, "s_aux": torch.ones(2)}, {"attention_mask": None, "position_bias": torch.ones(1)}],
)  # fmt: skip
def test_what_would_change_the_scores_is_refused(change):
    ones = torch.ones(1, 2, 4, 8)
    with pytest.raises(UserError, match="learner.packing=false"):
        segments(torch.nn.Module(), ones, ones, ones, **change)


OTHERS: dict[str, Any] = {
    "recurrent": FalconMambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4),
    "linear attention": Qwen3NextConfig(
        **COMMON, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, linear_num_value_heads=2,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, shared_expert_intermediate_size=8,
    ),
    "attention sinks": GptOssConfig(**COMMON, num_local_experts=2, num_experts_per_tok=1),
    "its own attention code": MptConfig(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_cannot_keep_packed_sequences_apart_are_refused(name):
    model = AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[name]))
    prepare(model, packed=False)  # as they are
    with pytest.raises(UserError, match="learner.packing=false"):
        prepare(model, packed=True)


def test_a_model_that_loses_the_lengths_on_the_way_to_its_attention_is_refused():
    model = make("qwen3")
    attend = model.model.layers[1].self_attn.forward
    model.model.layers[1].self_attn.forward = lambda cu_seq_lens_q, **kwargs: attend(**kwargs)
    with pytest.raises(UserError, match="Qwen3ForCausalLM gives a sequence other hidden states"):
        prepare(model, packed=True)


def test_a_model_that_ignores_positions_is_refused():
    model = make("gpt2")
    base = model.transformer.forward
    model.transformer.forward = lambda position_ids, **kwargs: base(**kwargs)
    with pytest.raises(UserError, match="learner.packing=false"):
        prepare(model, packed=True)


def test_an_exported_model_names_no_attention_that_others_lack(tmp_path):
    model = make("qwen3")
    prepare(model, packed=True)
    model.save_pretrained(tmp_path)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
