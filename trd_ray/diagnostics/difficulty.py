"""By how often a problem is solved: held-out problems by the base, and a run's own problems by their attempts.

    evaluation/*.json of a run or of trd evaluate  ->  evaluated_buckets()  ->  as score.buckets.to_json, by set
    RowFacts                                       ->  buckets_of_rows()    ->  what refinement does in each bucket

The caution of `trd_ray.score.buckets` holds for both: the grouping fixes the column that it is made by. A problem that
was solved in none of four attempts is not one that the student can never solve.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from trd_ray.diagnostics.row_facts import RowFacts, kl_of, mean_of, median_of
from trd_ray.score.buckets import LABELS, bucket_of, buckets, to_json
from trd_ray.score.stats import Score, from_json

BASE = "base"


def evaluated_buckets(directory: Path, *, resamples: int, seed: int) -> dict[str, Any] | None:
    """By set, with "" for evaluation.path; or by benchmark, of a directory of trd evaluate. None without an evaluation.

    Beside the base stands what was evaluated last. No score of other problems is, nor a damaged file.
    """
    out: dict[str, Any] = {}
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for file in sorted((directory / "evaluation").glob("**/*.json")):
        try:
            tree = json.loads(file.read_text())
            if "benchmark" in tree:  # of trd evaluate, which has grouped them
                out[tree["benchmark"]["name"]] = tree["buckets"]
            else:
                scores["" if file.parent.name == "evaluation" else file.parent.name].append(from_json(tree))
        except (ValueError, KeyError, TypeError, OSError):
            continue
    for name, found in scores.items():
        base = next((one for one in found if one.name == BASE), None)
        if base is None:
            continue
        alike = [one for one in found if one is not base and one.per_problem.keys() == base.per_problem.keys()]
        newest = sorted(alike, key=lambda one: one.step)[-1:]
        out[name] = to_json(buckets(base, newest, resamples=resamples, seed=seed))
    return out or None


def buckets_of_rows(facts: RowFacts) -> list[dict[str, Any]] | None:
    """A dict for each of LABELS that has problems. None where no problem has several attempts with a verdict."""
    verdicts: defaultdict[str, list[int]] = defaultdict(list)
    for row, problem in enumerate(facts.problems):
        if problem is not None and not np.isnan(facts["y_o_passed"][row]):
            verdicts[problem].append(row)
    if not any(len(rows) > 1 for rows in verdicts.values()):
        return None
    groups: list[list[int]] = [[] for _ in LABELS]
    problems = np.zeros(len(LABELS), dtype=int)
    for rows in verdicts.values():
        label = bucket_of([bool(facts["y_o_passed"][row]) for row in rows])
        groups[label] += rows
        problems[label] += 1
    return [
        {
            "label": LABELS[i],
            "problems": int(problems[i]),
            "rows": len(rows),
            "y_o_passed": mean_of(facts["y_o_passed"][rows]),
            "y_r_passed": mean_of(facts["y_r_passed"][rows]),
            "raw": median_of(facts["y_o_tokens"][rows]),
            "refined": median_of(facts["y_r_tokens"][rows]),
            "kl": kl_of(facts, np.array(rows)),
        }
        for i, rows in enumerate(groups)
        if rows
    ]
