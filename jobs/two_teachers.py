"""`python jobs/two_teachers.py --directory DIR [--seeds 3]`: a student of two teachers beside one of each alone.

    the halves of the miniature world's secret table -> two teachers, each right in its own half and wrong in the other
    for each seed: a run with both (a row's teacher knows what the row needs), and a run with either alone on all rows
    held-out chains, most of which need both halves  -> Avg@k of all of them, with intervals -> table.md, results.json

The teachers themselves are asked too: the student is to end above either of them, and above either's student.

Started again, the same command goes on: what stands in the directory is not made again. On 2 cores a run takes some
minutes, and the teachers are made once. Overrides (`steps=10`, `cluster.memory_gib=20`) reach every run.

Exit codes: 0 both is above either alone, clear of zero, 1 it is not, 2 a mistake in the options or a run that failed.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import seeded_runs
from seeded_runs import share_by_problem

from trd_ray.config import apply_override, from_tree, recipe_tree
from trd_ray.errors import UserError
from trd_ray.files import write_atomically
from trd_ray.miniature.halves import HALVES, halved_problems
from trd_ray.record.directory import RunDirectory
from trd_ray.record.markdown import table as markdown_table
from trd_ray.score.stats import Estimate, estimate, paired_difference, percent

BOTH = "both"
RUNS = (BOTH, *HALVES)
RECIPE = "miniature_opd"
CPUS = 0.4  # of each engine and the rank: three engines, a rank and a verifier share 2 cores
RESAMPLES = 10_000
SAMPLES = 16  # of each teacher; an override may ask the students for others


def run_tree(run: str, seed: int, directory: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe of one run: both teachers, or one of them for all rows."""
    tree = recipe_tree(RECIPE)
    teachers = {half: {"mode": "opd", "path": str(teacher_folder(directory, half))} for half in HALVES}
    del tree["teacher"]
    data: dict[str, Any] = {"path": str(directory / "problems.jsonl")}
    if run == BOTH:
        tree |= {"teachers": teachers}
        data["teacher_column"] = "teacher"
    else:
        tree |= {"teacher": teachers[run]}
    tree |= {"name": f"{run}-{seed}", "seed": seed, "run_dir": str(run_folder(directory, run, seed)), "data": data}
    for group in ("sampler", "refiner", "learner"):
        tree[group] |= {"cpus": CPUS}
    tree["evaluation"] |= {"samples": SAMPLES, "before": run == BOTH}  # the student before training, once a seed
    for override in overrides:
        apply_override(tree, override)
    from_tree(tree)  # a mistake in an override is told before anything is made
    return tree


def teacher_folder(directory: Path, half: str) -> Path:
    return directory / "teachers" / half


def run_folder(directory: Path, run: str, seed: int) -> Path:
    return directory / f"{run}-{seed}"


# What is made


def make_teachers(directory: Path) -> None:
    """Both teachers and their passes of the held-out problems, where they are not there yet."""
    from rich.console import Console

    from trd_ray.miniature import build
    from trd_ray.miniature.halves import world

    for half in HALVES:
        folder = build.build_one(teacher_folder(directory, half), world(half), "teacher", Console(stderr=True))
        answers = folder.with_suffix(".json")
        if not answers.is_file():
            write_atomically(answers, json.dumps(asked_alone(folder, SAMPLES)))


def asked_alone(folder: Path, samples: int) -> dict[str, list[bool]]:
    """Problem -> which of its samples the teacher itself solves, on the held-out problems."""
    import torch
    from transformers import Qwen3ForCausalLM

    from trd_ray.miniature import problems
    from trd_ray.miniature.halves import parsed
    from trd_ray.miniature.measure import respond
    from trd_ray.miniature.pretrain import WORLD

    rows = problems("test")
    chains = [parsed(row["problem"]) for row in rows for _ in range(samples)]
    torch.manual_seed(0)
    responses = respond(WORLD, Qwen3ForCausalLM.from_pretrained(folder), "solve", chains)
    passed = [WORLD.solved(chain, response) for chain, response in zip(chains, responses, strict=True)]
    return {row["problem_id"]: passed[i * samples : (i + 1) * samples] for i, row in enumerate(rows)}


def write_problems(directory: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in halved_problems())
    write_atomically(directory / "problems.jsonl", lines)


# What is told


@dataclass(frozen=True)
class Line:
    """One row of the table: shares of the samples that pass, as means over problems (and over seeds)."""

    what: str
    avg: Estimate
    by_seed: list[float]
    both_minus_it: Estimate | None  # paired over problems; None for the run with both itself


def lines(found: Mapping[str, Sequence[Mapping[str, Sequence[bool]]]]) -> list[Line]:
    """A line for each of what was asked: name -> passes by problem, one for each seed. `both` must be among them.

    Problems that somebody was not asked (evaluation.limit) are in no line.
    """
    problems = sorted(set.intersection(*(set(one) for answers in found.values() for one in answers)))
    both_P = share_by_problem(found[BOTH], problems)
    told = []
    for name, answers in found.items():
        share_P = share_by_problem(answers, problems)
        difference = None if name == BOTH else paired_difference(share_P, both_P, RESAMPLES, 0)
        by_seed = [float(np.mean(share_by_problem([one], problems))) for one in answers]
        told.append(Line(name, estimate(share_P, RESAMPLES, 0), by_seed, difference))
    return told


def shown(told: Sequence[Line], samples: int) -> str:
    """The lines as a Markdown table, in percent with 95% intervals over problems."""
    rows = [["", f"Avg@{samples}", "by seed", "both minus it"]]
    for one in told:
        seeds = ", ".join(f"{100 * value:.1f}" for value in one.by_seed)
        difference = percent(one.both_minus_it, signed=True) if one.both_minus_it else ""
        rows.append([one.what, percent(one.avg), seeds, difference])
    return markdown_table(rows)


def both_is_above(told: Sequence[Line]) -> bool:
    """Whether the student of both is above all others, each interval clear of zero."""
    others = [one.both_minus_it for one in told if one.both_minus_it]
    return bool(others) and all(one.clear_of_zero and one.value > 0 for one in others)


def gathered(directory: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, list[bool]]]]:
    """What the table is made of, from the files of finished runs and teachers."""
    found: dict[str, list[dict[str, list[bool]]]] = {"before": []}
    for half in HALVES:
        alone = json.loads(teacher_folder(directory, half).with_suffix(".json").read_text())
        found[f"teacher {half} itself"] = [alone]
    for run in (*HALVES, BOTH):
        name = run if run == BOTH else f"{run} alone"
        for seed in seeds:
            scores = {one.name: one for one in RunDirectory(run_folder(directory, run, seed)).read_evaluations()}
            found.setdefault(name, []).append(scores["trained"].per_problem)
            if "base" in scores:
                found["before"].append(scores["base"].per_problem)
    return {name: answers for name, answers in found.items() if answers}


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = seeded_runs.parser("two_teachers", __doc__).parse_args(arguments)
        directory, seeds = given.directory, range(given.seeds)
        trees = [run_tree(run, seed, directory, given.overrides) for seed in seeds for run in RUNS]
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    directory.mkdir(parents=True, exist_ok=True)
    write_problems(directory)
    make_teachers(directory)
    if not seeded_runs.train_all(trees):
        return 2
    told = lines(gathered(directory, seeds))
    text = shown(told, from_tree(trees[0]).evaluation.samples)
    write_atomically(directory / "table.md", text + "\n")
    write_atomically(directory / "results.json", json.dumps([asdict(one) for one in told], indent=1))
    print(text)
    return 0 if both_is_above(told) else 1


if __name__ == "__main__":
    sys.exit(main())
