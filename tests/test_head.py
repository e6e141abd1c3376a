"""The chunked KL is the full-vocabulary forward KL, its gradients are exact, and no [N, V] tensor is ever made.

Shapes: N tokens, V vocabulary, H and G hidden sizes of student and teacher, S statistics.
"""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy, embedding
from torch.utils._python_dispatch import TorchDispatchMode

from trd_ray.distill.head import STATISTICS, forward_kl, token_logprobs

N, V, H, G = 23, 61, 8, 12


def inputs(dtype=torch.float64, tokens: int = N) -> dict[str, torch.Tensor]:
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


def naive(i: dict[str, torch.Tensor], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and statistics from whole logits in float64, by torch.distributions and cross_entropy."""
    d = {name: t.double() if t.is_floating_point() else t for name, t in i.items()}
    student_NV = d["hidden_NH"] @ d["head_VH"].T
    teacher_NV = d["teacher_hidden_NG"] @ d["teacher_head_VG"].T
    p_S, p_T = (Categorical(logits=logits / temperature) for logits in (student_NV, teacher_NV))
    kl_N = kl_divergence(p_T, p_S)
    nlls = [cross_entropy(logits, d["targets_N"], reduction="none") for logits in (student_NV, teacher_NV)]
    return (kl_N * d["weight_N"]).sum(), torch.stack([kl_N, *nlls, p_S.entropy(), p_T.entropy()])


def gradients(loss: torch.Tensor, i: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [i["hidden_NH"], i["head_VH"]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_loss_statistics_and_gradients_equal_naive_float64(dtype, rtol, temperature):
    i = inputs(dtype)
    loss, statistics_SN = forward_kl(**i, temperature=temperature, chunk_tokens=5)
    expected_loss, expected_SN = naive(i, temperature)
    assert loss.dtype == statistics_SN.dtype == dtype
    torch.testing.assert_close(loss.double(), expected_loss, rtol=rtol, atol=0)
    assert STATISTICS[0] == "kl" and expected_SN[0].min() > 0.1  # a relative bound means something
    torch.testing.assert_close(statistics_SN.double(), expected_SN.detach(), rtol=rtol, atol=rtol)
    for ours, theirs in zip(gradients(loss, i), gradients(expected_loss, i), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_gradients_pass_gradcheck(temperature):
    i = inputs(tokens=5)

    def loss(hidden_NH, head_VH):
        given = i | {"hidden_NH": hidden_NH, "head_VH": head_VH}
        return forward_kl(**given, temperature=temperature, chunk_tokens=2)[0]

    assert torch.autograd.gradcheck(loss, (i["hidden_NH"], i["head_VH"]))


@pytest.mark.parametrize("chunk_tokens", [1, 7, N, 1000])
def test_chunk_size_changes_nothing(chunk_tokens):
    i = inputs()
    whole, chunked = (forward_kl(**i, chunk_tokens=c) for c in (N, chunk_tokens))
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(chunked[0], i), gradients(whole[0], i), rtol=1e-12, atol=1e-12)


def test_tied_weights_get_the_gradients_of_head_and_embedding():
    i = inputs()
    tied_VH, ids_N = i["head_VH"], torch.randint(V, (N,))
    grads = [
        torch.autograd.grad(kl(i | {"hidden_NH": embedding(ids_N, tied_VH).tanh()}), tied_VH)[0]
        for kl in (lambda given: forward_kl(**given, chunk_tokens=4)[0], lambda given: naive(given)[0])
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    i = inputs()
    i |= {"teacher_hidden_NG": i["hidden_NH"], "teacher_head_VG": i["head_VH"]}
    loss, statistics_SN = forward_kl(**i, chunk_tokens=4)
    assert loss == 0 and not statistics_SN[0].any()
    assert all(not g.any() for g in gradients(loss, i))


def test_the_teacher_and_the_statistics_give_no_gradient():
    i = inputs()
    loss, statistics_SN = forward_kl(**i)
    loss.backward()
    assert i["hidden_NH"].grad is not None and i["head_VH"].grad is not None
    assert i["teacher_hidden_NG"].grad is None and i["teacher_head_VG"].grad is None
    assert not statistics_SN.requires_grad


@pytest.mark.parametrize("frozen", ["hidden_NH", "head_VH"])
def test_a_frozen_input_gets_no_gradient_and_leaves_the_other_exact(frozen):
    i = inputs()
    i[frozen].requires_grad_(False)
    other = ({"hidden_NH", "head_VH"} - {frozen}).pop()
    ours, theirs = (torch.autograd.grad(loss, i[other])[0] for loss in (forward_kl(**i)[0], naive(i)[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_no_tokens_give_zero_and_a_zero_gradient():
    i = inputs(tokens=0)
    loss, statistics_SN = forward_kl(**i)
    assert loss == 0 and statistics_SN.shape == (len(STATISTICS), 0)
    hidden_grad, head_grad = gradients(loss, i)
    assert hidden_grad.shape == (0, H) and not head_grad.any()


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
        loss, _ = forward_kl(**i, chunk_tokens=chunk)
        loss.backward()
    assert made.largest <= tokens * max(H, G) < tokens * V
    assert sorted(saved) == [V * H, tokens * H]


def test_bfloat16_inputs_are_close_to_float32():
    low = inputs(torch.bfloat16, 200)
    high = {n: t.detach().float().requires_grad_() if t.is_floating_point() else t for n, t in low.items()}
    (ours, ours_SN), (exact, exact_SN) = (forward_kl(**i, chunk_tokens=7) for i in (low, high))
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
    loss, statistics_SN = forward_kl(**i, chunk_tokens=5)
    student_NV, teacher_NV = (
        (i[hidden].double() @ i[head].double().T).log_softmax(-1)
        for hidden, head in (("hidden_NH", "head_VH"), ("teacher_hidden_NG", "teacher_head_VG"))
    )
    assert not student_NV.exp().all()  # some probability is 0 even in float64
    expected_N = (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)
    torch.testing.assert_close(statistics_SN[0].double(), expected_N.detach(), rtol=1e-4, atol=1e-4)
    assert statistics_SN.isfinite().all() and all(g.isfinite().all() for g in gradients(loss, i))


@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_token_logprobs_are_negative_cross_entropies(chunk_tokens):
    i = inputs(torch.float32)
    ours_N = token_logprobs(i["hidden_NH"], i["head_VH"], i["targets_N"], chunk_tokens)
    expected_N = -cross_entropy(i["hidden_NH"] @ i["head_VH"].T, i["targets_N"], reduction="none")
    torch.testing.assert_close(ours_N, expected_N.detach(), rtol=1e-5, atol=1e-5)
    assert not ours_N.requires_grad
