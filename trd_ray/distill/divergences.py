"""Divergences between a student's and a teacher's next-token distributions: values and gradients in closed form.

    logits / temperature -> support (all tokens, the teacher's top k, top k + one for the rest) -> p, q, log p - log q
                         -> a term for every outcome and its slope -> clips -> D, d D / d student logits

With p the student's probabilities, q the teacher's, m = beta q + (1 - beta) p the mixture:

    forward KL   sum q log(q / p)
    reverse KL   sum p log(p / q)
    JSD(beta)    beta sum q log(q / m) + (1 - beta) sum p log(p / m)        GKD, arXiv:2306.13649, eq. 1

beta weighs the teacher, as in TRL. JSD(beta) / beta tends to forward KL as beta -> 0 and JSD(beta) / (1 - beta) to
reverse KL as beta -> 1; at 0 and 1 themselves it is those two by definition, again as in TRL. If s_v = d D / d log p_v,
then d D / d logit_v = (s_v - p_v sum_u s_u) / temperature.

Every KL is summed as sum a (e^x - 1 - x) with x = log(b / a). That differs from a log(a / b) by b - a, whose sum is 0:
no term is negative, so nothing cancels where student and teacher are close, and a normaliser's error counts squared.

Pure torch. Shapes: N tokens, V vocabulary, M outcomes of the support, K top-k.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.autograd.function import once_differentiable

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Divergence:
    """The divergence that is minimised at each token. The default is TRD's full-vocabulary forward KL.

    Entries are those of the recipe's `loss` section.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5  # jsd: the teacher's weight in the mixture
    top_k: int | None = None  # support: the teacher's k likeliest tokens; None: the vocabulary
    rest: Literal["renormalise", "tail"] = "renormalise"  # top_k: over the k alone, or the rest as one more outcome
    temperature: float = 1.0  # divides both sides' logits
    token_clip: float | None = None  # min(D, c), as in the TRD release
    vocab_clip: float | None = None  # min(contribution of an outcome, c), as in OPSD, arXiv:2601.18734

    def __post_init__(self) -> None:
        if self.kind not in ("forward_kl", "reverse_kl", "jsd") or self.rest not in ("renormalise", "tail"):
            raise ValueError(f"there is no divergence {self.kind} with rest {self.rest}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta weighs the teacher in a mixture and lies in [0, 1], not {self.beta}")

    @classmethod
    def from_config(cls, loss: Any) -> "Divergence":
        """The divergence that the `loss` section of a recipe describes."""
        return cls(
            loss.divergence, loss.beta, loss.top_k, loss.rest, loss.temperature, loss.token_clip, loss.vocab_clip
        )

    @property
    def limit(self) -> Kind:
        """`kind`, but JSD at beta 0 and 1 is called by its other name."""
        if self.kind != "jsd" or 0 < self.beta < 1:
            return self.kind
        return "reverse_kl" if self.beta else "forward_kl"


class Pair(NamedTuple):
    """Two distributions over the same M outcomes."""

    p_NM: torch.Tensor  # the student's
    q_NM: torch.Tensor  # the teacher's
    log_ratio_NM: torch.Tensor  # log p - log q
    student_logsumexp_N1: torch.Tensor
    teacher_logsumexp_N1: torch.Tensor


def pair(student_NM: torch.Tensor, teacher_NM: torch.Tensor) -> Pair:
    """The distributions of two sides' logits in float32 or float64."""
    p_NM, q_NM = student_NM.softmax(-1), teacher_NM.softmax(-1)
    # The largest probability is 1 / sum(exp(logit - largest logit)).
    student_N1, teacher_N1 = (
        logits_NM.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
        for logits_NM, p in ((student_NM, p_NM), (teacher_NM, q_NM))
    )
    # Logits that are close subtract exactly, which two log-softmaxes do not: one rounding error is left for each row.
    log_ratio_NM = (student_NM - teacher_NM).sub_(student_N1 - teacher_N1)
    return Pair(p_NM, q_NM, log_ratio_NM, student_N1, teacher_N1)


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(-log p of each target [N], its gradient in the logits [N, V]) for logits in float32 or float64."""
    targets_N1 = targets_N.unsqueeze(1)
    value_N = (logits_NV.logsumexp(-1, keepdim=True) - logits_NV.gather(1, targets_N1)).squeeze(1)
    p_NV = logits_NV.softmax(-1)
    return value_N, p_NV.scatter_add_(1, targets_N1, torch.full_like(targets_N1, -1, dtype=p_NV.dtype))


def forward_kl_terms(on: Pair) -> torch.Tensor:
    """Terms [N, M], each at least 0, whose sum over M is KL(teacher || student)."""
    return _kl_terms(on.q_NM, on.p_NM, on.log_ratio_NM)


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, spec: Divergence) -> torch.Tensor:
    """Divergence of each token [N] in nats. Gradients reach the student's logits, not the teacher's.

    Half precision is computed in float32, and float64 in float64. This keeps one [N, V] tensor, where
    `head.fused_divergence` keeps none.
    """
    return _Divergence.apply(student_NV, teacher_NV.detach(), spec)  # type: ignore[return-value]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: torch.Tensor, teacher_NV: torch.Tensor, spec: Divergence):
        exact = torch.promote_types(student_NV.dtype, torch.float32)
        value_N, grad_NV = value_and_gradient(student_NV.to(exact), teacher_NV.to(exact), spec)
        ctx.save_for_backward(grad_NV.to(student_NV.dtype))
        return value_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor):  # type: ignore[override]
        (grad_NV,) = ctx.saved_tensors
        return grad_NV * grad_N.to(grad_NV.dtype).unsqueeze(1), None, None


def value_and_gradient(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, spec: Divergence, plain: Pair | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(D [N], d D / d student logits [N, V]) for logits in float32 or float64.

    `plain` is `pair(student_NV, teacher_NV)` where the caller has it already. It saves work if the support is the
    vocabulary and the temperature is 1.
    """
    if spec.temperature != 1:
        student_NV, teacher_NV = student_NV / spec.temperature, teacher_NV / spec.temperature
    if spec.top_k is None or spec.top_k >= student_NV.shape[-1]:
        on = plain if plain is not None and spec.temperature == 1 else pair(student_NV, teacher_NV)
        value_N, grad_NV = _on_support(on, spec)
    else:
        value_N, grad_NV = _on_top_k(student_NV, teacher_NV, spec.top_k, spec)
    if spec.temperature != 1:
        grad_NV = grad_NV / spec.temperature
    if spec.token_clip is not None:
        grad_NV = grad_NV * (value_N <= spec.token_clip).unsqueeze(1)
        value_N = value_N.clamp(max=spec.token_clip)
    return value_N, grad_NV


def _on_top_k(student_NV: torch.Tensor, teacher_NV: torch.Tensor, k: int, spec: Divergence):
    teacher_NM, ids_NK = teacher_NV.topk(k, dim=-1)
    student_NM = student_NV.gather(-1, ids_NK)
    if spec.rest == "renormalise":
        value_N, grad_NM = _on_support(pair(student_NM, teacher_NM), spec)
        return value_N, torch.zeros_like(student_NV).scatter_(-1, ids_NK, grad_NM)
    # The rest is one outcome whose logit is its logsumexp: 1 - sum of the top k would lose a small rest to rounding.
    student_rest_NV, teacher_rest_NV = (x.scatter(-1, ids_NK, -math.inf) for x in (student_NV, teacher_NV))
    student_rest_N1 = student_rest_NV.logsumexp(-1, keepdim=True)
    teacher_rest_N1 = teacher_rest_NV.logsumexp(-1, keepdim=True)
    on = pair(torch.cat([student_NM, student_rest_N1], -1), torch.cat([teacher_NM, teacher_rest_N1], -1))
    value_N, grad_NM = _on_support(on, spec)
    grad_NV = student_rest_NV.sub_(student_rest_N1).exp_().mul_(grad_NM[:, -1:])  # the share of each token in the rest
    return value_N, grad_NV.scatter_(-1, ids_NK, grad_NM[:, :-1])


def _on_support(on: Pair, spec: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """(D [N] before the token clip, its gradient in the student's logits [N, M])."""
    terms_NM, slopes_NM = _terms(on, spec)
    if spec.vocab_clip is not None:
        # Subtract what the clip takes off, so that D keeps its precision where nothing is clipped.
        entries_NM, entry_slopes_NM = _entries(on, spec, terms_NM, slopes_NM)
        terms_NM = terms_NM - (entries_NM - spec.vocab_clip).relu()
        slopes_NM = slopes_NM - entry_slopes_NM * (entries_NM > spec.vocab_clip)
    elif spec.limit == "forward_kl":
        return terms_NM.sum(-1), slopes_NM  # p - q sums to 0
    return terms_NM.sum(-1), slopes_NM - on.p_NM * slopes_NM.sum(-1, keepdim=True)


def _terms(on: Pair, spec: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms that are at least 0 and sum to D, and their slopes d term / d log p."""
    p_NM, q_NM, log_ratio_NM = on[:3]
    match spec.limit:
        case "forward_kl":
            return forward_kl_terms(on), p_NM - q_NM
        case "reverse_kl":
            return _kl_terms(p_NM, q_NM, -log_ratio_NM), p_NM * log_ratio_NM
    beta = spec.beta
    m_NM = torch.lerp(p_NM, q_NM, beta)
    # log(m / q) = log(beta + (1 - beta) e^x) and log(m / p), x = log(p / q), in the form that cannot overflow.
    shrink_NM = torch.expm1(-log_ratio_NM.abs())
    shift_NM = torch.where(log_ratio_NM > 0, beta * shrink_NM, (1 - beta) * shrink_NM).log1p()
    log_m_q_NM = shift_NM + log_ratio_NM.relu()
    log_m_p_NM = shift_NM + (-log_ratio_NM).relu()
    terms_NM = beta * _kl_terms(q_NM, m_NM, log_m_q_NM) + (1 - beta) * _kl_terms(p_NM, m_NM, log_m_p_NM)
    return terms_NM, (beta - 1) * p_NM * log_m_p_NM


def _entries(on: Pair, spec: Divergence, terms_NM: torch.Tensor, slopes_NM: torch.Tensor):
    """The contributions in the sums at the top of this file, which may be negative, and their slopes d / d log p."""
    p_NM, q_NM, log_ratio_NM = on[:3]
    match spec.limit:
        case "forward_kl":
            return -q_NM * log_ratio_NM, -q_NM
        case "reverse_kl":
            return p_NM * log_ratio_NM, p_NM * log_ratio_NM + p_NM
    return terms_NM, slopes_NM  # beta (m - q) + (1 - beta) (m - p) is 0 outcome by outcome


def _kl_terms(a_NM: torch.Tensor, b_NM: torch.Tensor, x_NM: torch.Tensor) -> torch.Tensor:
    """a (e^x - 1 - x) = a log(a / b) + b - a, where b = a e^x."""
    near = 0.25 if a_NM.dtype == torch.float32 else 0.01  # up to this |x| five terms of the series are exact
    series_NM = torch.full_like(x_NM, 1 / 720)
    for factorial in (120, 24, 6, 2):
        series_NM.mul_(x_NM).add_(1 / factorial)
    series_NM = series_NM.mul_(x_NM).mul_(x_NM).mul_(a_NM)
    return torch.where(x_NM.abs() < near, series_NM, b_NM - a_NM - a_NM * x_NM)
