"""Every divergence equals its formula written out in float64, in value and gradient, and TRL's where TRL has it.

Shapes: N tokens, V vocabulary, K top-k.
"""

import math
import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch

from trd_ray.distill.divergences import Divergence, divergence

N, V = 17, 101
KINDS = [Divergence("forward_kl"), Divergence("reverse_kl"), Divergence("jsd", beta=0.5), Divergence("jsd", beta=0.1)]
SUPPORTS = [{}, {"top_k": 7}, {"top_k": 7, "rest": "tail"}]
TOKEN_CLIPS = [0.9, 0.8, 0.2, 0.08]  # near the median of each kind, so that some tokens are clipped and some are not
SPECS = [
    replace(kind, **support, **rest)
    for kind, clip in zip(KINDS, TOKEN_CLIPS, strict=True)
    for support, rest in product(
        SUPPORTS,
        [
            {},
            {"temperature": 1.7},
            {"token_clip": clip},
            {"vocab_clip": 0.05},
            {"vocab_clip": 0.05, "token_clip": clip / 4},
        ],
    )
]


def name(spec: Divergence) -> str:
    return "-".join(str(v) for v in (spec.kind, *(v for f, v in vars(spec).items() if v != vars(Divergence())[f])))


def logits(tokens: int = N, vocabulary: int = V, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher, float32 numbers in float64, as far apart as two trained models may be."""
    g = torch.Generator().manual_seed(0)
    student_NV, teacher_NV = (torch.randn(tokens, vocabulary, generator=g) * spread for _ in range(2))
    return student_NV.double().requires_grad_(), (teacher_NV + student_NV).div(1.4).double()


def naive(student_NV: torch.Tensor, teacher_NV: torch.Tensor, spec: Divergence) -> torch.Tensor:
    """The plain formulas on whole probabilities, [N], differentiable by autograd."""
    p, q = (student_NV / spec.temperature).softmax(-1), (teacher_NV / spec.temperature).softmax(-1)
    if spec.top_k is not None:
        ids_NK = teacher_NV.topk(spec.top_k).indices
        p, q = p.gather(1, ids_NK), q.gather(1, ids_NK)
        if spec.rest == "tail":
            p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
        else:
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    m = spec.beta * q + (1 - spec.beta) * p
    entries = {
        "forward_kl": q * (q / p).log(),
        "reverse_kl": p * (p / q).log(),
        "jsd": spec.beta * q * (q / m).log() + (1 - spec.beta) * p * (p / m).log(),
    }[spec.kind]
    d_N = entries.clamp(max=spec.vocab_clip or math.inf).sum(-1)
    return d_N.clamp(max=spec.token_clip or math.inf)


def grad(d_N: torch.Tensor, student_NV: torch.Tensor) -> torch.Tensor:
    """With a different weight for every token."""
    return torch.autograd.grad(d_N, student_NV, torch.linspace(0.5, 2, len(d_N), dtype=d_N.dtype))[0]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_value_and_gradient_equal_the_naive_float64_formula(spec):
    student_NV, teacher_NV = logits()
    expected_N = naive(student_NV, teacher_NV, spec)
    expected_grad_NV = grad(expected_N, student_NV)
    if spec.token_clip is not None and spec.vocab_clip is None:
        assert 0 < (expected_N == spec.token_clip).sum() < N
    # Clipped entries of both signs may sum to almost 0, where a relative error says nothing.
    of_one = 0.0 if spec.vocab_clip is None else 1.0
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        low_NV = student_NV.detach().to(dtype).requires_grad_()
        d_N = divergence(low_NV, teacher_NV.to(dtype), spec)
        assert d_N.dtype == dtype
        torch.testing.assert_close(d_N.double(), expected_N, rtol=rtol, atol=of_one * rtol / 10)
        torch.testing.assert_close(grad(d_N, low_NV).double(), expected_grad_NV, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("spec", KINDS[:3], ids=name)
def test_float32_keeps_its_precision_over_a_large_vocabulary(spec):
    student_NV, teacher_NV = logits(3, 151_936)
    d_N = divergence(student_NV.float(), teacher_NV.float(), spec)
    torch.testing.assert_close(d_N.double(), naive(student_NV, teacher_NV, spec).detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_gradcheck(spec):
    student_NV, teacher_NV = logits(4, 11)
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher_NV, spec), student_NV)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient(spec, dtype):
    student_NV = logits(spread=5)[0].detach().to(dtype).requires_grad_()
    d_N = divergence(student_NV, student_NV.detach().clone(), spec)
    assert not d_N.any() and grad(d_N, student_NV).abs().max() < 1e-7


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("spec", [replace(k, **s) for k, s in product(KINDS, SUPPORTS)], ids=name)
def test_float32_measures_a_student_that_is_close_to_its_teacher(spec, step):
    """Down to 1e-7 nats, where differences of float32 log-probabilities have no correct digit."""
    teacher_NV = logits()[1].float()
    student_NV = teacher_NV + step * torch.randn(N, V, generator=torch.Generator().manual_seed(1))
    d_N = divergence(student_NV, teacher_NV, spec)
    expected_N = naive(student_NV.double(), teacher_NV.double(), spec)
    # The logit of the rest is a float32 number itself.
    torch.testing.assert_close(d_N.double(), expected_N, rtol=1e-6 / step if spec.rest == "tail" else 1e-5, atol=0)


@pytest.mark.parametrize("rest", ["renormalise", "tail"])
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_top_k_with_k_equal_to_the_vocabulary_is_the_full_divergence(kind, rest):
    student_NV, teacher_NV = logits()
    whole_N = divergence(student_NV, teacher_NV, kind)
    top_N = divergence(student_NV, teacher_NV, replace(kind, top_k=V, rest=rest))
    torch.testing.assert_close(top_N, whole_N, rtol=1e-12, atol=0)
    if rest == "tail":  # and with one token left, the rest is that token
        top_N = divergence(student_NV, teacher_NV, replace(kind, top_k=V - 1, rest=rest))
        torch.testing.assert_close(top_N, whole_N, rtol=1e-12, atol=0)


def test_a_tail_of_a_billionth_is_not_lost_in_float32():
    teacher_NV = torch.tensor([[25.0, 20.0, 0.0, 0.0, 1.0]])
    student_NV = torch.tensor([[20.0, 25.0, 2.0, 1.0, 0.0]])
    spec = Divergence(top_k=2, rest="tail", vocab_clip=100.0)
    d_N, expected_N = (divergence(student_NV.to(t), teacher_NV.to(t), spec) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(d_N.double(), expected_N, rtol=1e-6, atol=0)
    torch.testing.assert_close(expected_N, naive(student_NV.double(), teacher_NV.double(), spec), rtol=1e-6, atol=0)
    only_tail = replace(spec, kind="reverse_kl")
    student_NV = (teacher_NV + torch.tensor([[0.0, 0, 3, 3, 3]])).requires_grad_()
    d_N = divergence(student_NV, teacher_NV, only_tail)  # differs in the tail alone
    expected_N = naive(student_NV.double(), teacher_NV.double(), only_tail)
    torch.testing.assert_close(d_N.double(), expected_N, rtol=1e-4, atol=0)


def test_jsd_at_beta_0_and_1_is_forward_and_reverse_kl():
    student_NV, teacher_NV = logits()
    for beta, kind in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        pair = [divergence(student_NV, teacher_NV, s) for s in (Divergence("jsd", beta=beta), Divergence(kind))]
        assert torch.equal(*pair)
        assert torch.equal(*(grad(d_N, student_NV) for d_N in pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jsd_per_beta_tends_to_forward_and_reverse_kl(dtype):
    student_NV, teacher_NV = (x.detach().to(dtype) for x in logits())
    small = 1e-4
    towards_forward_N = divergence(student_NV, teacher_NV, Divergence("jsd", beta=small)) / small
    towards_reverse_N = divergence(student_NV, teacher_NV, Divergence("jsd", beta=1 - small)) / small
    torch.testing.assert_close(towards_forward_N, divergence(student_NV, teacher_NV, KINDS[0]), rtol=0.01, atol=0)
    torch.testing.assert_close(towards_reverse_N, divergence(student_NV, teacher_NV, KINDS[1]), rtol=0.01, atol=0)


def test_jsd_is_symmetric_at_one_half_and_only_there():
    student_NV, teacher_NV = logits()
    for beta, symmetric in ((0.5, True), (0.3, False)):
        spec = Divergence("jsd", beta=beta)
        there_N, back_N = divergence(student_NV, teacher_NV, spec), divergence(teacher_NV, student_NV, spec)
        assert torch.allclose(there_N, back_N, rtol=1e-12, atol=0) == symmetric
        mirrored_N = divergence(teacher_NV, student_NV, Divergence("jsd", beta=1 - beta))
        torch.testing.assert_close(there_N, mirrored_N, rtol=1e-12, atol=0)


@pytest.mark.parametrize("clip", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("field", ["token_clip", "vocab_clip"])
@pytest.mark.parametrize("spec", [replace(k, **s) for k, s in product(KINDS, SUPPORTS)], ids=name)
def test_a_clip_never_raises_the_divergence(spec, field, clip):
    student_NV, teacher_NV = logits()
    free_N = divergence(student_NV, teacher_NV, spec)
    clipped_N = divergence(student_NV, teacher_NV, replace(spec, **{field: clip}))
    assert (clipped_N <= free_N).all()
    if field == "token_clip":
        assert torch.equal(clipped_N, free_N.clamp(max=clip))
    unused_N = divergence(student_NV, teacher_NV, replace(spec, **{field: 1e6}))
    assert torch.equal(unused_N, free_N)


def test_a_clipped_token_has_no_gradient():
    student_NV, teacher_NV = logits()
    free_N = divergence(student_NV, teacher_NV, KINDS[0])
    clip = free_N.detach().median().item()
    grad_NV = grad(divergence(student_NV, teacher_NV, Divergence(token_clip=clip)), student_NV)
    assert torch.equal(grad_NV.any(-1), free_N <= clip)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_an_all_masked_row_gives_a_zero_loss_that_still_has_a_gradient_path(spec):
    for tokens in (N, 0):
        student_NV, teacher_NV = logits(tokens)
        loss = (divergence(student_NV, teacher_NV, spec) * torch.zeros(tokens)).sum()
        loss.backward()
        assert loss == 0 and student_NV.grad is not None and not student_NV.grad.any()


def test_the_teacher_gets_no_gradient_and_half_precision_computes_in_float32():
    student_NV, teacher_NV = (x.detach().bfloat16().requires_grad_() for x in logits())
    d_N = divergence(student_NV, teacher_NV, KINDS[0])
    d_N.sum().backward()
    assert teacher_NV.grad is None and student_NV.grad is not None and student_NV.grad.dtype == torch.bfloat16
    torch.testing.assert_close(d_N, divergence(student_NV.float(), teacher_NV.float(), KINDS[0]), rtol=0, atol=0)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_probabilities_of_zero_keep_value_and_gradient_finite(spec):
    student_NV, teacher_NV = (x.detach().float().mul(400).requires_grad_() for x in logits())
    assert not student_NV.softmax(-1).all() and not teacher_NV.softmax(-1).all()
    d_N = divergence(student_NV, teacher_NV, spec)
    assert d_N.isfinite().all() and (d_N >= 0).all() and grad(d_N, student_NV).isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_agrees_with_the_generalised_jsd_of_trl(beta, temperature):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and which vLLM it supports
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    student_NV, teacher_NV = logits()
    theirs_NV = GKDTrainer.generalized_jsd_loss(
        student_NV, teacher_NV, beta=beta, temperature=temperature, reduction="none"
    )
    ours_N = divergence(student_NV, teacher_NV, Divergence("jsd", beta=beta, temperature=temperature))
    torch.testing.assert_close(ours_N, theirs_NV.sum(-1), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad(ours_N, student_NV), grad(theirs_NV.sum(-1), student_NV), rtol=1e-10, atol=1e-12)


def test_a_recipe_names_the_divergence():
    from trd_ray.config import LossConfig  # here, as the tests marked gpu import this file where pydantic may be absent

    loss = LossConfig(divergence="jsd", beta=0.3, top_k=5, rest="tail", temperature=2, token_clip=0.1, vocab_clip=0.2)
    assert Divergence.from_config(loss) == Divergence("jsd", 0.3, 5, "tail", 2, 0.1, 0.2)
    assert Divergence.from_config(LossConfig()) == Divergence()


def test_what_is_no_divergence_is_refused():
    for wrong in ({"kind": "kl"}, {"rest": "drop"}, {"beta": 1.5}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            Divergence(**wrong)
