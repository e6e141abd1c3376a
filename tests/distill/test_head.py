"""The fused head is the divergence of whole logits, its gradients are exact, and no [N, V] tensor is ever made.

Shapes: N tokens, V vocabulary, H and G hidden sizes of student and teacher, S statistics, W watched ids.
"""

from typing import Any

import pytest
import torch
from test_divergences import SPECS, name
from test_divergences import naive as naive_divergence
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy, embedding
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MptConfig,
    RecurrentGemmaConfig,
)

from trd_ray.distill.divergences import Divergence
from trd_ray.distill.head import STATISTICS, fused_cross_entropy, fused_divergence, token_logprobs
from trd_ray.distill.logits import LogitTransform
from trd_ray.errors import UserError

N, V, H, G = 23, 61, 8, 12
FORWARD_KL = Divergence()
SOFT = {"student_logits": LogitTransform(0.7, softcap=3.0), "teacher_logits": LogitTransform(1.3, softcap=5.0)}


def inputs(dtype=torch.float64, tokens: int = N) -> dict[str, Any]:
    """Student and teacher of different hidden sizes, whose distributions are far from uniform and from each other."""
    torch.manual_seed(0)
    return {
        "hidden_NH": torch.randn(tokens, H, dtype=dtype).requires_grad_(),
        "head_VH": torch.randn(V, H, dtype=dtype).requires_grad_(),
        "teacher_hidden_NG": torch.randn(tokens, G, dtype=dtype).requires_grad_(),
        "teacher_head_VG": torch.randn(V, G, dtype=dtype).requires_grad_(),
        "targets_N": torch.randint(V, (tokens,)),
        "weight_N": torch.rand(tokens, dtype=torch.promote_types(dtype, torch.float32)),
    }


def naive(
    i: dict[str, Any],
    spec: Divergence = FORWARD_KL,
    student_logits: LogitTransform | None = None,
    teacher_logits: LogitTransform | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and statistics from whole logits in float64, by torch.distributions and cross_entropy."""
    d = {n: t.double() if t.is_floating_point() else t for n, t in i.items()}

    def logits(hidden_NH, head_VH, transform):
        raw_NV = hidden_NH @ head_VH.T
        if transform is None:
            return raw_NV
        return transform.softcap * torch.tanh(raw_NV * transform.scale / transform.softcap)

    student_NV = logits(d["hidden_NH"], d["head_VH"], student_logits)
    teacher_NV = logits(d["teacher_hidden_NG"], d["teacher_head_VG"], teacher_logits)
    p_S, p_T = Categorical(logits=student_NV), Categorical(logits=teacher_NV)
    d_N = naive_divergence(student_NV, teacher_NV.detach(), spec)
    nlls = [cross_entropy(logits, d["targets_N"], reduction="none") for logits in (student_NV, teacher_NV)]
    mass_N = p_T.probs[:, d["watch_ids"]].sum(-1) if "watch_ids" in d else torch.zeros(len(d_N))
    statistics = [d_N, kl_divergence(p_T, p_S), *nlls, p_S.entropy(), p_T.entropy(), mass_N]
    return (d_N * d["weight_N"]).sum(), torch.stack(statistics)


def fused(i: dict[str, Any], spec: Divergence = FORWARD_KL, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return fused_divergence(**i, divergence=spec, **options)


def gradients(loss: torch.Tensor, i: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [i["hidden_NH"], i["head_VH"]]))


@pytest.mark.parametrize("options", [{}, SOFT], ids=["plain", "soft-capped"])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_loss_statistics_and_gradients_equal_naive_float64(spec, options):
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        i = inputs(dtype) | {"watch_ids": torch.tensor([3, 50, 7])}
        loss, statistics_SN = fused(i, spec, chunk_tokens=5, **options)
        expected_loss, expected_SN = naive(i, spec, **options)
        assert loss.dtype == statistics_SN.dtype == dtype
        torch.testing.assert_close(loss.double(), expected_loss, rtol=rtol, atol=rtol)
        torch.testing.assert_close(statistics_SN.double(), expected_SN.detach(), rtol=rtol, atol=rtol)
        for ours, theirs in zip(gradients(loss, i), gradients(expected_loss, i), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def test_the_loss_is_relatively_exact_and_its_kl_does_not_depend_on_what_is_minimised():
    i = inputs(torch.float32)
    loss, statistics_SN = fused(i, chunk_tokens=5)
    torch.testing.assert_close(loss.double(), naive(i)[0], rtol=1e-5, atol=0)
    assert STATISTICS[:2] == ("divergence", "kl") and statistics_SN[1].min() > 0.1
    assert torch.equal(statistics_SN[0], statistics_SN[1])
    for spec in SPECS:
        torch.testing.assert_close(fused(i, spec)[1][1:], statistics_SN[1:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, SOFT], ids=["plain", "soft-capped"])
@pytest.mark.parametrize("spec", [FORWARD_KL, Divergence("jsd", 0.3, top_k=9, rest="tail", temperature=1.7)], ids=name)
def test_gradients_pass_gradcheck(spec, options):
    i = inputs(tokens=5)

    def loss(hidden_NH, head_VH):
        return fused(i | {"hidden_NH": hidden_NH, "head_VH": head_VH}, spec, chunk_tokens=2, **options)[0]

    assert torch.autograd.gradcheck(loss, (i["hidden_NH"], i["head_VH"]))


OF_STUDENT = ("hidden_NH", "head_VH", "targets_N", "weight_N")


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
def test_cross_entropy_and_its_gradient_equal_torchs_on_whole_logits(chunk_tokens, softcap):
    transform = LogitTransform(0.7, softcap=softcap)
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        i = {name: inputs(dtype)[name] for name in OF_STUDENT}
        loss, statistics_SN = fused_cross_entropy(**i, student_logits=transform, chunk_tokens=chunk_tokens)
        raw_NV = i["hidden_NH"].double() @ i["head_VH"].double().T * 0.7
        logits_NV = raw_NV if softcap is None else softcap * torch.tanh(raw_NV / softcap)
        nll_N = cross_entropy(logits_NV, i["targets_N"], reduction="none")
        expected = (nll_N * i["weight_N"].double()).sum()
        torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=rtol)
        for ours, theirs in zip(gradients(loss, i), gradients(expected, i), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
        found = dict(zip(STATISTICS, statistics_SN.double(), strict=True))
        for of_student in ("divergence", "student_nll"):
            torch.testing.assert_close(found.pop(of_student), nll_N.detach(), rtol=rtol, atol=rtol)
        entropy_N = Categorical(logits=logits_NV.detach()).entropy()
        torch.testing.assert_close(found.pop("student_entropy"), entropy_N, rtol=rtol, atol=rtol)
        assert all(values_N.isnan().all() for values_N in found.values())


def test_cross_entropy_makes_no_product_twice_and_none_with_a_teacher():
    i = {name: inputs(torch.float32)[name] for name in OF_STUDENT}
    with FlopCounterMode(display=False) as forward:
        fused_cross_entropy(**i, chunk_tokens=5)
    assert forward.get_total_flops() == 2 * N * V * (H + 2 * H)


@pytest.mark.parametrize("chunk_tokens", [1, 7, N, 1000])
def test_chunk_size_changes_nothing(chunk_tokens):
    i = inputs()
    whole, chunked = (fused(i, chunk_tokens=c) for c in (N, chunk_tokens))
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(chunked[0], i), gradients(whole[0], i), rtol=1e-12, atol=1e-12)


def test_tied_weights_get_the_gradients_of_head_and_embedding():
    i = inputs()
    tied_VH, ids_N = i["head_VH"], torch.randint(V, (N,))
    grads = [
        torch.autograd.grad(kl(i | {"hidden_NH": embedding(ids_N, tied_VH).tanh()}), tied_VH)[0]
        for kl in (lambda given: fused(given, chunk_tokens=4)[0], lambda given: naive(given)[0])
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    i = inputs()
    i |= {"teacher_hidden_NG": i["hidden_NH"], "teacher_head_VG": i["head_VH"]}
    loss, statistics_SN = fused(i, chunk_tokens=4)
    assert loss == 0 and not statistics_SN[:2].any()
    assert all(not g.any() for g in gradients(loss, i))


def test_the_teacher_and_the_statistics_give_no_gradient():
    i = inputs()
    loss, statistics_SN = fused(i)
    loss.backward()
    assert i["hidden_NH"].grad is not None and i["head_VH"].grad is not None
    assert i["teacher_hidden_NG"].grad is None and i["teacher_head_VG"].grad is None
    assert not statistics_SN.requires_grad


@pytest.mark.parametrize("frozen", ["hidden_NH", "head_VH"])
def test_a_frozen_input_gets_no_gradient_and_leaves_the_other_exact(frozen):
    i = inputs()
    i[frozen].requires_grad_(False)
    other = ({"hidden_NH", "head_VH"} - {frozen}).pop()
    ours, theirs = (torch.autograd.grad(loss, i[other])[0] for loss in (fused(i)[0], naive(i)[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_no_tokens_give_zero_and_a_zero_gradient():
    i = inputs(tokens=0)
    loss, statistics_SN = fused(i)
    assert loss == 0 and statistics_SN.shape == (len(STATISTICS), 0)
    hidden_grad, head_grad = gradients(loss, i)
    assert hidden_grad.shape == (0, H) and not head_grad.any()


@pytest.mark.parametrize("trained", [("hidden_NH", "head_VH"), ("hidden_NH",), ()], ids=["all", "frozen head", "none"])
def test_only_the_products_that_any_exact_method_needs_are_made_and_none_twice(trained):
    i = inputs(torch.float32)
    for side in ("hidden_NH", "head_VH"):
        i[side].requires_grad_(side in trained)
    with FlopCounterMode(display=False) as forward:
        loss, _ = fused(i, chunk_tokens=5)
    assert forward.get_total_flops() == 2 * N * V * (H + G + H * len(trained))
    if trained:
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        assert backward.get_total_flops() == 0


class _Sizes(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_is_made_or_saved():
    tokens, chunk = 4096, 64
    i, saved = inputs(torch.float32, tokens), []
    with saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t), _Sizes() as made:
        loss, _ = fused(i, chunk_tokens=chunk)
        loss.backward()
    assert made.largest <= tokens * max(H, G) < tokens * V
    assert sorted(saved) == [V * H, tokens * H]
    with _Sizes() as made:
        fused_cross_entropy(**{name: i[name] for name in OF_STUDENT}, chunk_tokens=chunk)[0].backward()
    assert made.largest <= tokens * max(H, G)


def test_bfloat16_inputs_are_close_to_float32():
    low = inputs(torch.bfloat16, 200)
    high = {n: t.detach().float().requires_grad_() if t.is_floating_point() else t for n, t in low.items()}
    (ours, ours_SN), (exact, exact_SN) = (fused(i, chunk_tokens=7) for i in (low, high))
    assert ours_SN.dtype == torch.float32  # statistics do not lose what the products kept
    torch.testing.assert_close(ours, exact, rtol=0.01, atol=0)
    torch.testing.assert_close(ours_SN.mean(1), exact_SN.mean(1), rtol=0.01, atol=0)
    for a, b in zip(gradients(ours, low), gradients(exact, high), strict=True):
        assert a.dtype == torch.bfloat16 and a.isfinite().all()
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_improbable_tokens_keep_the_loss_and_its_gradient_finite():
    i = inputs(torch.float32)
    with torch.no_grad():
        i["hidden_NH"] *= 300
        i["teacher_hidden_NG"] *= 300
    loss, statistics_SN = fused(i, chunk_tokens=5)
    student_NV, teacher_NV = (
        (i[hidden].double() @ i[head].double().T).log_softmax(-1)
        for hidden, head in (("hidden_NH", "head_VH"), ("teacher_hidden_NG", "teacher_head_VG"))
    )
    assert not student_NV.exp().all()  # some probability is 0 even in float64
    expected_N = (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)
    torch.testing.assert_close(statistics_SN[0].double(), expected_N.detach(), rtol=1e-4, atol=1e-4)
    assert statistics_SN.isfinite().all() and all(g.isfinite().all() for g in gradients(loss, i))


@pytest.mark.compiler
@pytest.mark.parametrize("spec", [FORWARD_KL, Divergence("jsd", 0.3, vocab_clip=0.02)], ids=name)
def test_compiling_changes_no_number_beyond_rounding(spec):
    i = inputs(torch.float32) | {"watch_ids": torch.tensor([3, 50, 7])}
    (loss, statistics_SN), (compiled_loss, compiled_SN) = (
        fused(i, spec, chunk_tokens=10, compile=compile, **SOFT) for compile in (False, True)
    )
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(compiled_SN, statistics_SN, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(compiled_loss, i), gradients(loss, i), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_bfloat16_on_a_gpu_keeps_float32_sums(compile):
    low = {n: t.detach().cuda() for n, t in inputs(torch.bfloat16, 200).items()}
    low = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in low.items()}
    exact = {n: t.detach().cpu().float().requires_grad_() if t.is_floating_point() else t for n, t in low.items()}
    exact["targets_N"] = exact["targets_N"].cpu()
    loss, statistics_SN = fused(low, chunk_tokens=64, compile=compile)
    expected, expected_SN = naive(exact)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics_SN.cpu().double(), expected_SN.detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients(loss, low), gradients(expected, exact), strict=True):
        assert (ours.cpu().float() - theirs).norm() < 0.01 * theirs.norm()


TINY: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
FAMILIES = [  # with numbers that change logits a lot
    LlamaConfig(**TINY),
    Gemma2Config(**TINY, final_logit_softcapping=2.0),
    RecurrentGemmaConfig(**TINY, lru_width=16, logits_soft_cap=2.0, block_types=["attention"]),
    CohereConfig(**TINY, logit_scale=0.25),
    GraniteConfig(**TINY, logits_scaling=3.0),
    HyperCLOVAXConfig(**TINY, logits_scaling=3.0),
    FalconH1Config(**TINY, lm_head_multiplier=0.4, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("config", FAMILIES, ids=lambda c: c.model_type)
def test_what_a_family_does_to_logits_is_honoured_in_value_and_gradient(config, dtype):
    torch.manual_seed(0)
    student = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    transform, ids_BT = LogitTransform.of(config), torch.randint(1, V, (2, 9))
    assert (transform == LogitTransform()) == (config.model_type == "llama")
    i = inputs(dtype, tokens=ids_BT.numel())
    teacher_NV = (i["teacher_hidden_NG"] @ i["teacher_head_VG"].T).detach()
    logits_NV = student(ids_BT).logits.flatten(0, 1)
    expected = (naive_divergence(logits_NV, teacher_NV, FORWARD_KL) * i["weight_N"]).sum()
    expected.backward()
    expected_grads = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    hidden_NH, head_VH = student.base_model(ids_BT).last_hidden_state.flatten(0, 1), student.lm_head.weight
    loss, statistics_SN = fused(
        i | {"hidden_NH": hidden_NH, "head_VH": head_VH}, student_logits=transform, chunk_tokens=7
    )
    loss.backward()
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    for n, p in student.named_parameters():
        if n in expected_grads:
            scale = expected_grads[n].abs().max()
            torch.testing.assert_close(p.grad, expected_grads[n], rtol=10 * rtol, atol=10 * rtol * float(scale), msg=n)
    nll_N = cross_entropy(logits_NV, i["targets_N"], reduction="none").detach()
    torch.testing.assert_close(statistics_SN[STATISTICS.index("student_nll")], nll_N, rtol=rtol, atol=rtol)
    ours_N = token_logprobs(hidden_NH, head_VH, i["targets_N"], 7, transform)
    torch.testing.assert_close(ours_N, -nll_N, rtol=rtol, atol=rtol)


def test_the_benchmark_compares_methods_that_compute_the_same():
    from jobs.bench_head import METHODS, Case, Inputs

    i = Inputs(Case(40, H, G, V, "float32", "cpu", torch.get_num_threads(), chunk_tokens=16, frozen_head=False))
    loss, *grads = ((loss := METHODS["naive"](i)), *torch.autograd.grad(loss, [i.hidden_NH, i.head_VH]))
    for method in ("ours", "TRL"):
        other = METHODS[method](i)
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)
        for ours, theirs in zip(torch.autograd.grad(other, [i.hidden_NH, i.head_VH]), grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_transform_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="logit_scale of a mpt model is 'inv_sqrt_d_model'"):
        LogitTransform.of(MptConfig(logit_scale="inv_sqrt_d_model"))


def test_vocabularies_of_two_sizes_are_refused():
    i = inputs()
    with pytest.raises(UserError, match="61 vocabulary entries and the teacher 60"):
        fused(i | {"teacher_head_VG": i["teacher_head_VG"][:-1]})


@pytest.mark.parametrize("shared", [V - 8, V])
@pytest.mark.parametrize("spec", [FORWARD_KL, Divergence("reverse_kl", top_k=9, rest="tail")], ids=name)
def test_heads_padded_to_two_lengths_are_compared_where_both_have_rows(spec, shared):
    i = inputs()
    i |= {"targets_N": i["targets_N"].clamp(max=shared - 1), "watch_ids": torch.tensor([3, 50, 7])}
    longer = torch.cat([i["teacher_head_VG"].detach(), torch.full((8, G), 9.0, dtype=torch.float64)])
    loss, statistics_SN = fused(i | {"teacher_head_VG": longer}, spec, vocabulary=shared, chunk_tokens=5)
    heads = {side: i[side][:shared] for side in ("head_VH", "teacher_head_VG")}
    expected_loss, expected_SN = naive(i | heads, spec)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(statistics_SN, expected_SN.detach(), rtol=1e-10, atol=1e-10)
    hidden_grad, head_grad = gradients(loss, i)
    torch.testing.assert_close([hidden_grad, head_grad], gradients(expected_loss, i), rtol=1e-10, atol=1e-10)
    assert head_grad[:shared].abs().sum(1).all() and not head_grad[shared:].any()


@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_token_logprobs_are_negative_cross_entropies(chunk_tokens):
    i = inputs(torch.float32)
    ours_N = token_logprobs(i["hidden_NH"], i["head_VH"], i["targets_N"], chunk_tokens)
    expected_N = -cross_entropy(i["hidden_NH"] @ i["head_VH"].T, i["targets_N"], reduction="none")
    torch.testing.assert_close(ours_N, expected_N.detach(), rtol=1e-5, atol=1e-5)
    assert not ours_N.requires_grad
