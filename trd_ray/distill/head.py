"""Divergence of student and teacher from their hidden states, or cross entropy, one chunk of tokens at a time.

    chunk of C tokens ─┬─ piece: student, teacher hidden @ lm_head -> logits_PV, logits_PV (float32)
                       │    block: LogitTransform -> statistics, D, d D / d logits   (see divergences.py)
                       ├─ ... the pieces' gradients side by side: grad_CV, in the hidden states' type
                       └─ grad_CV @ lm_head -> hidden gradient;  grad_CV.T @ hidden added to the head's gradient

Without a teacher, whose statistics are NaN then, the loss is the cross entropy of the trajectory's own tokens.

Gradients are formed in the forward pass: no [N, V] tensor is ever made, and nothing is projected twice.

- A chunk is long, because each one reads and writes the whole gradient of the head once.
- A piece is a quarter of a chunk. The logits of both sides exist for one piece at a time.
- A block is what the elementwise part takes at a time where it is not compiled. It is so small that its intermediate
  results stay in the processor's cache.

Products run in the type of the hidden states. Probabilities, statistics and the head's gradient are float32 (float64
for float64 inputs); on CUDA they come from float32 sums that are not rounded to bfloat16 first.

Shapes: N response tokens, C tokens of a chunk, P of a piece, R of a block, V vocabulary, H and G hidden sizes of
student and teacher, S statistics, W watched token ids.
"""

import math
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trd_ray.distill.divergences import Divergence, cross_entropy, forward_kl_terms, pair, value_and_gradient
from trd_ray.distill.logits import PLAIN, LogitTransform
from trd_ray.errors import UserError

STATISTICS = (
    "divergence",  # the minimised one: with temperature, support and clips; or the cross entropy
    "kl",  # the diagnostic: full-vocabulary KL(teacher || student); this and all below at temperature 1
    "student_nll",
    "teacher_nll",
    "student_entropy",
    "teacher_entropy",
    "teacher_mass",  # the teacher's probability of the watched ids together
)

_PIECES = 4  # in a chunk


def fused_divergence(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    teacher_hidden_NG: torch.Tensor,
    teacher_head_VG: torch.Tensor,
    targets_N: torch.Tensor,
    weight_N: torch.Tensor,
    *,
    divergence: Divergence,
    student_logits: LogitTransform = PLAIN,
    teacher_logits: LogitTransform = PLAIN,
    watch_ids: torch.Tensor | None = None,
    vocabulary: int | None = None,
    chunk_tokens: int = 1024,
    compile: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss [], statistics_SN): the weighted sum of the tokens' divergence, and per-token statistics.

    Statistics are in nats, not differentiable, their rows named by STATISTICS. The teacher gets no gradient. A head
    that requires none costs no product. Without tokens the loss is 0, and so are the gradients.

    - `targets_N`: the tokens of the trajectory, for the NLLs.
    - `weight_N`: factors of the tokens' divergence, such as 1 / (global token count).
    - `watch_ids` [W]: distinct token ids whose teacher mass is reported (0 without).
    - `vocabulary`: how many rows of both heads are compared, as if there were no more. Without it both must have
      equally many, or this raises UserError.
    - `compile`: fuse the elementwise part with torch.compile. On a GPU it is otherwise most of the time.
    """
    if vocabulary is None and len(head_VH) != len(teacher_head_VG):
        raise UserError(
            f"the student has {len(head_VH)} vocabulary entries and the teacher {len(teacher_head_VG)}, but they are "
            "compared entry by entry: choose a teacher with the student's tokenizer and as many rows of lm_head"
        )
    return _FusedDivergence.apply(
        hidden_NH,
        head_VH,
        teacher_hidden_NG.detach(),
        teacher_head_VG.detach(),
        targets_N,
        weight_N,
        watch_ids,
        vocabulary,
        divergence,
        (student_logits, teacher_logits),
        chunk_tokens,
        compile,
    )  # type: ignore[return-value]


def fused_cross_entropy(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    weight_N: torch.Tensor,
    *,
    student_logits: LogitTransform = PLAIN,
    chunk_tokens: int = 1024,
    compile: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `fused_divergence`, for the cross entropy of the targets. Statistics that need a teacher are NaN."""
    return _FusedDivergence.apply(
        hidden_NH, head_VH, None, None, targets_N, weight_N, None, None, None, (student_logits, PLAIN), chunk_tokens,
        compile,
    )  # type: ignore[return-value]  # fmt: skip


@torch.no_grad()
def token_logprobs(
    hidden_NH: torch.Tensor,
    head_VH: torch.Tensor,
    targets_N: torch.Tensor,
    chunk_tokens: int = 1024,
    logits: LogitTransform = PLAIN,
) -> torch.Tensor:
    """Log-probability of each target token at temperature 1, [N] float32 (float64 for float64)."""
    exact = torch.promote_types(hidden_NH.dtype, torch.float32)
    out_N = hidden_NH.new_empty(len(hidden_NH), dtype=exact)
    for p in _slices(len(out_N), -(-chunk_tokens // _PIECES)):
        logits_PV = logits(_project(hidden_NH[p], head_VH).to(exact))
        out_N[p] = logits_PV.gather(1, targets_N[p].unsqueeze(1)).squeeze(1) - logits_PV.logsumexp(-1)
    return out_N


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        head_VH: torch.Tensor,
        teacher_hidden_NG: torch.Tensor | None,
        teacher_head_VG: torch.Tensor | None,
        targets_N: torch.Tensor,
        weight_N: torch.Tensor,
        watch_ids: torch.Tensor | None,
        vocabulary: int | None,
        divergence: Divergence | None,
        transforms: tuple[LogitTransform, LogitTransform],
        chunk_tokens: int,
        compile: bool,
    ):
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        rows_VH = head_VH[:vocabulary]
        N, V, dtype = len(hidden_NH), len(rows_VH), hidden_NH.dtype
        exact = torch.promote_types(dtype, torch.float32)
        statistics_SN = hidden_NH.new_empty((len(STATISTICS), N), dtype=exact)
        hidden_grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        # Summing many chunks in bfloat16 would lose the small ones.
        head_grad_VH = torch.zeros_like(head_VH, dtype=exact) if needs_head else None
        piece = -(-chunk_tokens // _PIECES)
        grad_buffer_CV = head_VH.new_empty((min(N, chunk_tokens), V), dtype=dtype)
        elementwise = _compiled() if compile else _in_blocks
        for c in _slices(N, chunk_tokens):
            hidden_CH = hidden_NH[c]
            grad_CV = grad_buffer_CV[: len(hidden_CH)]
            for p in _slices(len(hidden_CH), piece):
                n = slice(c.start + p.start, c.start + p.stop)
                in_place = dtype == exact  # the gradient takes the place of the student's logits
                student_PV = _project(hidden_CH[p], rows_VH, out=grad_CV[p] if in_place else None)
                teacher_PV = None
                if teacher_hidden_NG is not None and teacher_head_VG is not None:
                    teacher_PV = _project(teacher_hidden_NG[n], teacher_head_VG[:vocabulary])
                statistics_SN[:, n] = elementwise(
                    student_PV,
                    teacher_PV,
                    None if in_place else grad_CV[p],
                    targets_N[n],
                    weight_N[n],
                    watch_ids,
                    divergence,
                    transforms,
                )
                del student_PV, teacher_PV  # before the next piece's are made
            if hidden_grad_NH is not None:
                torch.mm(grad_CV, rows_VH, out=hidden_grad_NH[c])
            if head_grad_VH is not None:
                _add_product(head_grad_VH[:V], grad_CV.T, hidden_CH)
        loss = (statistics_SN[0] * weight_N).sum()
        del grad_buffer_CV
        ctx.save_for_backward(hidden_grad_NH, None if head_grad_VH is None else head_grad_VH.to(head_VH.dtype))
        ctx.mark_non_differentiable(statistics_SN)
        return loss, statistics_SN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss, _grad_statistics):  # type: ignore[override]
        grads = ctx.saved_tensors
        # The product makes another [V, H], so a factor of 1 is left out. On a GPU, looking at the number would wait.
        if grad_loss.is_cuda or grad_loss != 1:
            grads = [None if grad is None else grad * grad_loss for grad in grads]
        return *grads, *(None,) * 10


def _project(hidden_PH: torch.Tensor, head_VH: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Products with lm_head [P, V] in the operands' type, on CUDA in float32."""
    if hidden_PH.is_cuda and hidden_PH.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden_PH, head_VH.T, out_dtype=torch.float32)
    return torch.mm(hidden_PH, head_VH.T, out=out)


def _add_product(sum_VH: torch.Tensor, a_VC: torch.Tensor, b_CH: torch.Tensor) -> None:
    """Add a @ b to the sum in the sum's type, without a [V, H] tensor in between."""
    if a_VC.is_cuda and a_VC.dtype in (torch.bfloat16, torch.float16):
        torch.addmm(sum_VH, a_VC, b_CH, out_dtype=torch.float32, out=sum_VH)
    else:
        torch.addmm(sum_VH, a_VC.to(sum_VH.dtype), b_CH.to(sum_VH.dtype), out=sum_VH)


def _statistics(
    student_RV: torch.Tensor,
    teacher_RV: torch.Tensor | None,
    grad_RV: torch.Tensor | None,
    targets_R: torch.Tensor,
    weight_R: torch.Tensor,
    watch_ids: torch.Tensor | None,
    divergence: Divergence | None,
    transforms: tuple[LogitTransform, LogitTransform],
) -> torch.Tensor:
    """Statistics [S, R] from products with lm_head. weight * d D / d student's product is written into `grad_RV`.

    `grad_RV` is None where it would be `student_RV` itself: torch.compile computes two views of one memory wrongly.
    """
    exact = torch.promote_types(student_RV.dtype, torch.float32)
    out_RV = student_RV if grad_RV is None else grad_RV
    student_transform, teacher_transform = transforms
    student_RV = student_transform(student_RV.to(exact))
    if teacher_RV is None or divergence is None:
        nll_R, gradient_RV = cross_entropy(student_RV, targets_R)
        unknown_R = torch.full_like(nll_R, math.nan)
        entropy_R = -(student_RV.softmax(-1) * student_RV.log_softmax(-1)).sum(-1)
        out_RV.copy_(student_transform.gradient(gradient_RV.mul_(weight_R.unsqueeze(1)), student_RV))
        return torch.stack([nll_R, unknown_R, nll_R, unknown_R, entropy_R, unknown_R, unknown_R])
    teacher_RV = teacher_transform(teacher_RV.to(exact))
    targets_R1 = targets_R.unsqueeze(1)
    both = pair(student_RV, teacher_RV)
    value_R, gradient_RV = value_and_gradient(student_RV, teacher_RV, divergence, both)
    statistics_SR = torch.stack(
        [
            value_R,
            value_R if divergence == Divergence() else forward_kl_terms(both).sum(-1),
            (both.student_logsumexp_N1 - student_RV.gather(1, targets_R1)).squeeze(1),
            (both.teacher_logsumexp_N1 - teacher_RV.gather(1, targets_R1)).squeeze(1),
            (both.p_NM * (both.student_logsumexp_N1 - student_RV)).sum(-1),
            (both.q_NM * (both.teacher_logsumexp_N1 - teacher_RV)).sum(-1),
            torch.zeros_like(value_R) if watch_ids is None else both.q_NM[:, watch_ids].sum(-1),
        ]
    )
    out_RV.copy_(student_transform.gradient(gradient_RV.mul_(weight_R.unsqueeze(1)), student_RV))
    return statistics_SR


def _in_blocks(student_PV, teacher_PV, grad_PV, targets_P, weight_P, *rest: Any) -> torch.Tensor:
    """What `_statistics` computes, a few rows at a time."""
    rows = -(-_block_logits(student_PV.device) // student_PV.shape[1])
    of_rows = (student_PV, teacher_PV, grad_PV, targets_P, weight_P)
    blocks = [[None if t is None else t[r] for t in of_rows] for r in _slices(len(student_PV), rows)]
    return torch.cat([_statistics(*block, *rest) for block in blocks], dim=1)  # type: ignore[arg-type]


def _block_logits(device: torch.device) -> int:
    """Logits of a block: enough to keep every core busy, few enough that what is made of them stays in the cache."""
    if device.type == "cuda":
        return 2**15 * torch.cuda.get_device_properties(device).multi_processor_count
    return 2**17 * torch.get_num_threads()


@cache
def _compiled():
    return torch.compile(_statistics)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, n)) for begin in range(0, n, size)]
