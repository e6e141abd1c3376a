"""What stands at each position of a trajectory: the teacher's next step on right and wrong prefixes, and the KL signal.

    rollouts, a mode  ->  steps()    ->  Step: probabilities and divergences at the result of each equation of y_o
                      ->  signals()  ->  by line: KL of each token with its tenth of the trajectory

Legend: T time, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefix_parts.rollouts import Models, Rollout, logits
from trd_ray.distill.divergences import Divergence, divergence
from trd_ray.miniature.equations import equations
from trd_ray.score.stats import LEVEL, Estimate

FORWARD, REVERSE = Divergence("forward_kl"), Divergence("reverse_kl")
TENTHS = 10


@dataclass(frozen=True)
class Step:
    """One equation of a rollout, at the token that is its result."""

    problem: int
    operator: str
    right_prefix: bool
    local: float  # the teacher's probability of the result that is right for what stands there
    reference: float  # that of the chain's own result
    student_local: float  # the student's probability of the former
    forward_kl: float
    reverse_kl: float


@dataclass(frozen=True)
class Signal:
    """The KL signal of one trajectory, summed by tenths of it."""

    kl: np.ndarray
    tokens: np.ndarray


def steps(models: Models, rows: Sequence[Rollout], mode: str) -> Iterator[Step]:
    vocabulary = models.tokenizer.get_vocab()
    for row, student_TV, teacher_TV in _seen(models, rows, mode):
        tokens = models.tokenizer.convert_ids_to_tokens(row.y_o)
        found = equations(row.chain, tokens)
        places = [one.place for one in found]
        p_TV, q_TV = student_TV[places].softmax(-1), teacher_TV[places].softmax(-1)
        forward_T = divergence(student_TV[places], teacher_TV[places], FORWARD)
        reverse_T = divergence(student_TV[places], teacher_TV[places], REVERSE)
        for i, one in enumerate(found):
            local, reference = vocabulary[str(one.local)], vocabulary[str(one.reference)]
            yield Step(
                row.problem,
                one.operator,
                one.right_prefix,
                float(q_TV[i, local]),
                float(q_TV[i, reference]),
                float(p_TV[i, local]),
                float(forward_T[i]),
                float(reverse_T[i]),
            )


def _seen(models: Models, rows: Sequence[Rollout], mode: str) -> Iterator[tuple[Rollout, torch.Tensor, torch.Tensor]]:
    """Each y_o with what the student and the teacher, under its vanilla view, say before each token."""
    y_o = [row.y_o for row in rows]
    student = logits(models.student, [row.prompt_ids for row in rows], y_o)
    teacher = logits(models.teachers[mode], [row.taught[mode].vanilla_ids for row in rows], y_o)
    yield from zip(rows, student, teacher, strict=True)


def signals(models: Models, rows: Sequence[Rollout], mode: str) -> dict[tuple[str, str], list[Signal]]:
    """(which KL, which trajectories) -> the signal of each; y_r is scored under the refine view, y_o under the vanilla.

    `forward` and `reverse`; `y_o passed`, `y_o failed`, `y_r`.
    """
    found: dict[tuple[str, str], list[Signal]] = {}
    for row, student_TV, teacher_TV in _seen(models, rows, mode):
        name = "y_o passed" if row.passed else "y_o failed"
        for which, spec in (("forward", FORWARD), ("reverse", REVERSE)):
            found.setdefault((which, name), []).append(by_tenths(divergence(student_TV, teacher_TV, spec)))
    y_r = [row.taught[mode].y_r for row in rows]
    student = logits(models.student, [row.prompt_ids for row in rows], y_r)
    teacher = logits(models.teachers[mode], [row.taught[mode].refine_ids for row in rows], y_r)
    for student_TV, teacher_TV in zip(student, teacher, strict=True):
        for which, spec in (("forward", FORWARD), ("reverse", REVERSE)):
            found.setdefault((which, "y_r"), []).append(by_tenths(divergence(student_TV, teacher_TV, spec)))
    return found


def by_tenths(kl_T: torch.Tensor) -> Signal:
    tenth_T = np.arange(len(kl_T)) * TENTHS // max(1, len(kl_T))
    return Signal(
        np.bincount(tenth_T, kl_T.double().numpy(), TENTHS), np.bincount(tenth_T, minlength=TENTHS).astype(float)
    )


def mean_by_tenths(several: Sequence[Signal]) -> list[float]:
    """The mean KL a token in each tenth, over all tokens that stand there."""
    kl = np.sum([one.kl for one in several], axis=0)
    return list(kl / np.maximum(1, np.sum([one.tokens for one in several], axis=0)))


def clustered(values: Sequence[float], problems: Sequence[int], resamples: int, seed: int) -> Estimate:
    """The mean of values that belong to problems, with the interval that resampling problems gives."""
    value = float(np.mean(values))
    _, of = np.unique(problems, return_inverse=True)
    sums_P, counts_P = np.bincount(of, values), np.bincount(of)
    if len(counts_P) < 2:
        return Estimate(value, None, None)
    drawn_RP = np.random.default_rng(seed).multinomial(
        len(counts_P), np.full(len(counts_P), 1 / len(counts_P)), size=resamples
    )
    means_R = drawn_RP @ sums_P / (drawn_RP @ counts_P)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
