"""Problems grouped by how often the base solves them, and how each checkpoint does in every group.

    base Score, checkpoint Scores of the same problems  ->  buckets()  ->  JSON, table()

The first bucket, problems that the base never solves, is where new ability shows; the last is where forgetting shows.
One caution: the grouping fixes the base's own column. Sampled again, the base would solve some problems of the first
bucket and miss some of the last. So the base looks a little worse in the first bucket than it is, and a little better
in the last.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trd_ray.score.stats import Estimate, Score, estimate, percent, wilson

LABELS = ("never", "1-25%", "26-50%", "51-75%", "76-99%", "always")


@dataclass(frozen=True)
class Column:
    """One checkpoint in one bucket."""

    name: str
    samples: int
    avg: Estimate  # Avg@n; over the bucket's problems
    solved: Estimate  # Pass@n, the share of problems that any of the n samples solves; Wilson's interval
    problems_solved: int


@dataclass(frozen=True)
class Bucket:
    label: str  # one of LABELS
    problems: list[str]
    columns: list[Column]  # the base first; none for a bucket without problems


def bucket_of(passed: list[bool]) -> int:
    """The index in LABELS for a problem with these verdicts."""
    correct = sum(passed)
    samples = len(passed)
    if correct in (0, samples):
        return 0 if correct == 0 else len(LABELS) - 1
    return 1 + int(4 * correct > samples) + int(2 * correct > samples) + int(4 * correct > 3 * samples)


def buckets(base: Score, checkpoints: list[Score], *, resamples: int, seed: int) -> list[Bucket]:
    """All of LABELS in order; raises ValueError for a checkpoint that was evaluated on other problems."""
    for checkpoint in checkpoints:
        if checkpoint.per_problem.keys() != base.per_problem.keys():
            raise ValueError(f"{checkpoint.name} and {base.name} were not evaluated on the same problems")
    groups: list[list[str]] = [[] for _ in LABELS]
    for problem_id, passed in base.per_problem.items():
        groups[bucket_of(passed)].append(problem_id)
    return [
        Bucket(label, group, [_column(s, group, resamples, seed) for s in [base, *checkpoints]] if group else [])
        for label, group in zip(LABELS, groups, strict=True)
    ]


def _column(score: Score, group: list[str], resamples: int, seed: int) -> Column:
    passed_PS = np.array([score.per_problem[problem_id] for problem_id in group], dtype=bool)
    solved = int(passed_PS.any(axis=1).sum())
    avg = estimate(passed_PS.mean(axis=1), resamples, seed)
    return Column(score.name, score.samples, avg, wilson(solved, len(group)), solved)


def table(found: list[Bucket]) -> list[list[str]]:
    """A header and rows of text, one row for each bucket, with shares in percent."""
    columns = next((bucket.columns for bucket in found if bucket.columns), [])
    header = [f"solved by {columns[0].name}" if columns else "solved", "problems"]
    for c in columns:
        header += [f"Avg@{c.samples} {c.name}", f"Pass@{c.samples} {c.name}"]
    lines = [header]
    for bucket in found:
        cells = [part for c in bucket.columns for part in (percent(c.avg), f"{c.problems_solved}: {percent(c.solved)}")]
        lines.append([bucket.label, str(len(bucket.problems)), *(cells or ["-"] * (2 * len(columns)))])
    return lines


def to_json(found: list[Bucket]) -> list[dict[str, Any]]:
    return [asdict(bucket) for bucket in found]
