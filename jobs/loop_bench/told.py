"""Finished parts of the whole-run benchmark become two tables and a verdict on the aims.

    parts of each side, passes at each step  ->  lines()  ->  Line  ->  table(), course(), verdict()

Ratios are of samples a second of the steps alone: starts stand apart. Seeds are averaged within each problem, and
differences are paired over problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from seeded_runs import share_by_problem

from trd_ray.record import markdown
from trd_ray.score.stats import Estimate, estimate, paired_difference, percent

RESAMPLES = 10_000
AIM = 2.0  # samples a second, ours to the quickest of theirs
OURS, OURS_AHEAD, OURS_TRD, TRL, TRL_VLLM = "ours", "ours-ahead", "ours-trd", "trl", "trl-vllm"
SIDES = {
    OURS: "ours, forward KL on y_o",
    OURS_AHEAD: "the same, sampling a step ahead",
    OURS_TRD: "ours, TRD",
    TRL_VLLM: "TRL DistillationTrainer, vLLM in its process",
    TRL: "TRL DistillationTrainer, its own generation",
}

Passes = Mapping[str, Mapping[str, Sequence[bool]]]  # step -> problem -> samples


@dataclass(frozen=True)
class Part:
    """One run of one side: seconds of the whole, of its start and of each step."""

    start_s: float
    steps_s: list[float]
    whole_s: float
    samples: int
    tokens: int  # generated: rollouts, and refinements where there are any
    peak_mib: float

    @property
    def samples_a_second(self) -> float:
        return self.samples / sum(self.steps_s)


@dataclass(frozen=True)
class Line:
    side: str
    parts: list[Part]
    by_step: dict[int, Estimate]
    ours_minus_it: Estimate | None  # at the last step; None for ours itself, and without it

    @property
    def samples_a_second(self) -> float:
        return fmean(part.samples_a_second for part in self.parts)


def lines(parts: Mapping[str, Sequence[Part]], passes: Mapping[str, Sequence[Passes]]) -> list[Line]:
    """A line for each side that has parts; `passes` has one entry a seed, as many for each side as it has parts."""
    told = []
    ours = passes.get(OURS)
    for side in SIDES:
        if not parts.get(side):
            continue
        found = passes[side]
        steps = sorted(set.intersection(*({int(step) for step in one} for one in found)))
        by_step = {step: estimate(_shares(found, step), RESAMPLES, 0) for step in steps}
        difference = None
        if ours and side != OURS:
            seeds = min(len(ours), len(found))  # only seeds that both have finished
            difference = paired_difference(
                _shares(found[:seeds], steps[-1]), _shares(ours[:seeds], steps[-1]), RESAMPLES, 0
            )
        told.append(Line(side, list(parts[side]), by_step, difference))
    return told


def _shares(found: Sequence[Passes], step: int) -> np.ndarray:
    answers = [one[str(step)] for one in found]
    return share_by_problem(answers, sorted(answers[0]))


def table(told: Sequence[Line], failures: Mapping[str, str], samples: int) -> str:
    """A row for each side; what failed says why. The mean over seeds, and the least and most in brackets."""
    rows = [["", "samples/s", "ours is faster by", "s a step", "start, s", "in all, s", "generated tokens", "tokens/s",
             f"Avg@{samples} at the end", "ours minus it", "peak, MiB"]]  # fmt: skip
    ours = next((line for line in told if line.side == OURS), None)
    for line in told:
        its = line.parts
        ratio = ours.samples_a_second / line.samples_a_second if ours else None
        last = line.by_step[max(line.by_step)]
        rows.append(
            [
                SIDES[line.side],
                spread([part.samples_a_second for part in its], ".1f"),
                f"{ratio:.2f}x" if ratio else "",
                spread([fmean(part.steps_s) for part in its], ".2f"),
                spread([part.start_s for part in its], ".0f"),
                spread([part.whole_s for part in its], ".0f"),
                f"{fmean(part.tokens for part in its):,.0f}",
                f"{fmean(part.tokens / sum(part.steps_s) for part in its):,.0f}",
                percent(last),
                percent(line.ours_minus_it, signed=True) if line.ours_minus_it else "",
                f"{max(part.peak_mib for part in its):,.0f}",
            ]  # fmt: skip
        )
    rows += [[SIDES[side], f"failed: {why}", *[""] * 9] for side, why in failures.items()]
    return markdown.table(rows)


def spread(values: Sequence[float], form: str) -> str:
    least, most = min(values), max(values)
    middle = f"{fmean(values):{form}}"
    return middle if len(values) == 1 else f"{middle} [{least:{form}}, {most:{form}}]"


def course(told: Sequence[Line], samples: int) -> str:
    """Held-out Avg@k after each number of steps."""
    steps = sorted({step for line in told for step in line.by_step})
    rows = [[f"Avg@{samples} after steps", *map(str, steps)]]
    rows += [
        [SIDES[line.side], *(percent(line.by_step[step]) if step in line.by_step else "" for step in steps)]
        for line in told
    ]
    return markdown.table(rows)


def verdict(told: Sequence[Line]) -> str:
    """Whether the two aims hold against the quickest of TRL's ways, of those that ran."""
    ours = next((line for line in told if line.side == OURS), None)
    theirs = [line for line in told if line.side in (TRL, TRL_VLLM)]
    if not ours or not theirs:
        return "The aims need our forward KL and one of TRL's ways: run both."
    quickest = max(theirs, key=lambda line: line.samples_a_second)
    ratio = ours.samples_a_second / quickest.samples_a_second
    difference = quickest.ours_minus_it
    assert difference
    how = (
        "cannot be told apart" if not difference.clear_of_zero else "is better" if difference.value > 0 else "is worse"
    )
    ahead = next((line.samples_a_second for line in told if line.side == OURS_AHEAD), None)
    return (
        f"Against {SIDES[quickest.side]}, the quickest of TRL's ways here: {ratio:.2f}x the samples a second, so the "
        f"aim of {AIM:g}x {'holds' if ratio >= AIM else 'is missed'}; at equal steps our score {how} "
        f"({percent(difference, signed=True)} points)."
        + (f" Sampling a step ahead: {ahead / quickest.samples_a_second:.2f}x the samples a second." if ahead else "")
    )
