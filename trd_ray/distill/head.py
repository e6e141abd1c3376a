"""Full-vocabulary forward KL from hidden states, one chunk of tokens at a time.

    student hidden_NH, lm_head_VH ┐
                                  ├─ chunk of C tokens: logits_CV -> KL, d(KL)/d(logits) -> hidden and head gradients
    teacher hidden_NG, lm_head_VG ┘

    KL(pi_T || pi_S) = sum_v pi_T(v) (log pi_T(v) - log pi_S(v)),    d KL / d logits_S = (pi_S - pi_T) / temperature

Gradients are formed in the forward pass, so no [N, V] tensor is ever made and nothing is projected twice. Products run
in the type of the hidden states; probabilities, sums and the head's gradient in float32 (float64 for float64 inputs).
Shapes: N response tokens, C tokens of a chunk, V vocabulary, H and G hidden sizes of student and teacher.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

STATISTICS = ("kl", "student_nll", "teacher_nll", "student_entropy", "teacher_entropy")


class _ChunkedForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH, head_VH, teacher_hidden_NG, teacher_head_VG, targets_N, weight_N, temperature, chunk_tokens
    ):
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        N = hidden_NH.shape[0]
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        statistics_SN = hidden_NH.new_zeros((len(STATISTICS), N), dtype=exact)
        hidden_grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        # Summing thousands of chunks in bf16 would lose the small ones.
        head_grad_VH = torch.zeros_like(head_VH, dtype=exact) if needs_head else None
        for begin in range(0, N, chunk_tokens):
            c = slice(begin, begin + chunk_tokens)
            hidden_CH, targets_C1 = hidden_NH[c], targets_N[c].unsqueeze(1)
            student_CV = linear(hidden_CH, head_VH).to(exact)
            teacher_CV = linear(teacher_hidden_NG[c], teacher_head_VG).to(exact)
            for i, logits_CV in ((1, student_CV), (2, teacher_CV)):
                statistics_SN[i, c] = logits_CV.logsumexp(-1) - logits_CV.gather(1, targets_C1).squeeze(1)
            student_CV = (student_CV / temperature).log_softmax(-1)
            teacher_CV = (teacher_CV / temperature).log_softmax(-1)
            p_student_CV, p_teacher_CV = student_CV.exp(), teacher_CV.exp()
            statistics_SN[0, c] = (p_teacher_CV * (teacher_CV - student_CV)).sum(-1)
            statistics_SN[3, c] = -(p_student_CV * student_CV).sum(-1)
            statistics_SN[4, c] = -(p_teacher_CV * teacher_CV).sum(-1)
            if needs_hidden or needs_head:
                grad_CV = p_student_CV.sub_(p_teacher_CV).mul_((weight_N[c] / temperature).unsqueeze(1))
                grad_CV = grad_CV.to(hidden_NH.dtype)
                if hidden_grad_NH is not None:
                    hidden_grad_NH[c] = grad_CV @ head_VH
                if head_grad_VH is not None:
                    head_grad_VH += grad_CV.T @ hidden_CH
        ctx.save_for_backward(hidden_grad_NH, head_grad_VH)
        ctx.head_dtype = head_VH.dtype
        loss = (statistics_SN[0] * weight_N).sum()
        ctx.mark_non_differentiable(statistics_SN)
        return loss, statistics_SN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss, _grad_statistics):  # type: ignore[override]
        hidden_grad_NH, head_grad_VH = ctx.saved_tensors
        if hidden_grad_NH is not None:
            hidden_grad_NH = hidden_grad_NH * grad_loss
        if head_grad_VH is not None:
            head_grad_VH = (head_grad_VH * grad_loss).to(ctx.head_dtype)
        return hidden_grad_NH, head_grad_VH, None, None, None, None, None, None


def forward_kl(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    teacher_hidden_NG: torch.Tensor,
    teacher_head_VG: torch.Tensor,
    targets_N: torch.Tensor,
    weight_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of per-token forward KL, and per-token statistics.

    `targets_N` are the tokens of the trajectory (for the NLLs, at temperature 1); `weight_N` multiplies each token's
    KL, e.g. 1 / (global token count). Returns (loss [], statistics_SN in nats, rows named by STATISTICS; not
    differentiable).
    Teacher inputs get no gradient. TRD eq. "full-vocabulary forward KL on y_r"; no clip, no top-k.
    """
    return _ChunkedForwardKL.apply(
        hidden_NH,
        head_VH,
        teacher_hidden_NG.detach(),
        teacher_head_VG.detach(),
        targets_N,
        weight_N,
        temperature,
        chunk_tokens,
    )  # type: ignore[return-value]


@torch.no_grad()
def token_logprobs(
    hidden_NH: torch.Tensor, head_VH: torch.Tensor, targets_N: torch.Tensor, chunk_tokens: int = 1024
) -> torch.Tensor:
    """Log-probability of each target token at temperature 1, [N] float32."""
    out_N = hidden_NH.new_empty(hidden_NH.shape[0], dtype=torch.float32)
    for begin in range(0, len(out_N), chunk_tokens):
        c = slice(begin, begin + chunk_tokens)
        logits_CV = linear(hidden_NH[c], head_VH).float()
        out_N[c] = logits_CV.gather(1, targets_N[c].unsqueeze(1)).squeeze(1) - logits_CV.logsumexp(-1)
    return out_N
