"""What each method's gradient is on passed and on failed rollouts, and whether it points where the pass rate rises.

    rollouts, a mode  ->  by_method()    ->  method -> group of rows -> Pull: a row's norm, agreement, gradient
    rollouts          ->  pass_rate()    ->  the gradient of the student's own pass rate, and how sure it is
    two gradients     ->  cosine()

A row's gradient is that of its summed divergence, which is how it enters an update. *Agreement* is the norm of the
group's summed gradient over the sum of its rows' norms: 1 where all rows pull one way, and about 1/sqrt(n) where n rows
know nothing of each other.

The pass rate's gradient is estimated by REINFORCE over all rollouts, each set against the others of its problem. Half
of the problems give one estimate and half another; how far these agree says how much of the whole is noise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefix_parts.rollouts import AT_ONCE, Models, Rollout, logits
from trd_ray.distill.divergences import Divergence, divergence

GROUPS: dict[str, Callable[[Rollout], bool]] = {
    "all": lambda row: True,
    "passed": lambda row: row.passed,
    "failed": lambda row: not row.passed,
}
METHODS = {  # name -> what it trains on, and its divergence; y_o has the vanilla view and y_r the refine view
    "forward KL": ("y_o", Divergence("forward_kl")),
    "reverse KL": ("y_o", Divergence("reverse_kl")),
    "TRD": ("y_r", Divergence("forward_kl")),
}


@dataclass
class Pull:
    """The gradient of a group of rows."""

    rows: int
    tokens: int
    loss: float  # a token
    row_norm: float  # mean over the rows
    summed: torch.Tensor

    @property
    def agreement(self) -> float:
        return float(self.summed.norm()) / (self.rows * self.row_norm) if self.row_norm else 0.0


@dataclass
class PassRate:
    """The gradient of the share of the student's own samples that pass."""

    gradient: torch.Tensor
    halves: float  # cosine between the estimates of two halves of the problems

    @property
    def ceiling(self) -> float:
        """The cosine of the estimate with the true gradient, about: what a method that went exactly its way would show.

        By Spearman and Brown, whole = 2 r / (1 + r) from the halves' r; its root is the correlation with the truth.
        """
        r = max(0.0, self.halves)
        return (2 * r / (1 + r)) ** 0.5


def by_method(models: Models, rows: Sequence[Rollout], mode: str) -> dict[str, dict[str, Pull]]:
    found = {}
    for method, (trajectory, spec) in METHODS.items():
        if trajectory == "y_o":
            shown, responses = [row.taught[mode].vanilla_ids for row in rows], [row.y_o for row in rows]
        else:
            shown = [row.taught[mode].refine_ids for row in rows]
            responses = [row.taught[mode].y_r for row in rows]
        pulls: dict[str, Pull] = {}
        for row, response, teacher_TV in zip(
            rows, responses, logits(models.teachers[mode], shown, responses), strict=True
        ):
            loss, gradient = _of_row(models.student, row.prompt_ids, response, teacher_TV, spec)
            for group, belongs in GROUPS.items():
                if belongs(row):
                    _add(pulls, group, len(response), loss, gradient)
        for pull in pulls.values():
            pull.loss /= pull.tokens
            pull.row_norm /= pull.rows
        found[method] = pulls
    return found


def _of_row(
    student: torch.nn.Module, prompt: list[int], response: list[int], teacher_TV: torch.Tensor, spec: Divergence
) -> tuple[float, torch.Tensor]:
    student_TV = student(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    loss = divergence(student_TV, teacher_TV, spec).sum()
    return loss.item(), flat(torch.autograd.grad(loss, list(student.parameters())))


def _add(pulls: dict[str, Pull], group: str, tokens: int, loss: float, gradient: torch.Tensor) -> None:
    pull = pulls.setdefault(group, Pull(0, 0, 0.0, 0.0, torch.zeros_like(gradient)))
    pull.rows += 1
    pull.tokens += tokens
    pull.loss += loss
    pull.row_norm += float(gradient.norm())
    pull.summed += gradient


def pass_rate(models: Models, rows: Sequence[Rollout]) -> PassRate:
    """Needs two rollouts of each problem or more."""
    halves = []
    for half in range(2):
        chosen = [row for row in rows if row.problem % 2 == half]
        halves.append(_reinforce(models.student, chosen, advantages(chosen)))
    return PassRate(halves[0] + halves[1], cosine(*halves))


def advantages(rows: Sequence[Rollout]) -> list[float]:
    """Each row's pass minus the mean of the others of its problem."""
    by_problem: dict[int, list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row.problem, []).append(row.passed)
    sums = {problem: (sum(passed), len(passed)) for problem, passed in by_problem.items()}
    return [row.passed - (sums[row.problem][0] - row.passed) / max(1, sums[row.problem][1] - 1) for row in rows]


def _reinforce(student: torch.nn.Module, rows: Sequence[Rollout], advantage: Sequence[float]) -> torch.Tensor:
    """The sum over rows of advantage times the gradient of their log-probability; an advantage of 0 costs nothing."""
    weighed = [(row, a) for row, a in zip(rows, advantage, strict=True) if a]
    total = torch.zeros(sum(p.numel() for p in student.parameters()))
    for i in range(0, len(weighed), AT_ONCE):
        part = weighed[i : i + AT_ONCE]
        longest = max(len(row.prompt_ids) + len(row.y_o) for row, _ in part)
        ids_BT = torch.zeros(len(part), longest, dtype=torch.long)
        weight_BT = torch.zeros(len(part), longest)
        for number, (row, a) in enumerate(part):
            begin, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.y_o)
            ids_BT[number, :end] = torch.tensor(row.prompt_ids + row.y_o)
            weight_BT[number, begin:end] = a
        logprobs_BTV = student(input_ids=ids_BT).logits[:, :-1].log_softmax(-1)
        taken_BT = logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
        aim = (taken_BT * weight_BT[:, 1:]).sum()
        total += flat(torch.autograd.grad(aim, list(student.parameters())))
    return total


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.flatten() for one in tensors])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else float(np.nan)
