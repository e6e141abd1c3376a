"""A run directory with rows as a run of the miniature world leaves it, scored ones among them, without having run."""

import json
from pathlib import Path

import numpy as np
from made_steps import random_scored, response, row

from trd_ray.config import load
from trd_ray.miniature import task, tokenizer
from trd_ray.record.directory import RunDirectory
from trd_ray.rows import to_table
from trd_ray.score.stats import Answer, score


def miniature_rows(rng: np.random.Generator, step: int, count: int, diagnosed: int, scored: bool = True) -> list[dict]:
    """Rows of real texts of the miniature task; two rollouts a problem."""
    words = tokenizer.build()
    rows = []
    for i, problem in enumerate(task.problems("train", count // 2, seed=step)):
        y_r = words(problem["reference"] + tokenizer.END, add_special_tokens=False).input_ids
        for sample in range(2):
            y_o = [words.convert_tokens_to_ids("Hmm"), *y_r] if sample else y_r[: len(y_r) // 2] + y_r
            entries = [random_scored(rng, "y_r", "refine", len(y_r), trained=True)]
            if 2 * i + sample < diagnosed:
                entries += [random_scored(rng, "y_o", view, len(y_o)) for view in ("refine", "vanilla")]
                entries.append(random_scored(rng, "y_r", "vanilla", len(y_r)))
            passed = bool(rng.random() < 0.5)
            rows.append(
                row(0, row=(step - 1) * count + 2 * i + sample, step=step - 1, sample_index=sample, trajectory="y_r")
                | {name: problem[name] for name in ("problem", "answer", "reference")}
                | {"problem_id": f"{step}-{problem['problem_id']}"}
                | {"source": "maths" if i % 2 else "logic", "scored": entries if scored else None}
                | {"y_o": response(y_o, passed, logprobs=[-0.5] * len(y_o), extracted=str(i if passed else sample))}
                | {"y_r": response(y_r, True, text=problem["reference"])}
            )
    return rows


def made_run(place: Path, steps: int = 3, count: int = 8, diagnosed: int = 4, scored: bool = True) -> list[dict]:
    """Write the run; returns its rows, with steps counted from 1 as in the files."""
    rng = np.random.default_rng(7)
    directory = RunDirectory.create(place, load("miniature_opsd", ["run_dir=" + str(place)]))
    rows = []
    with open(place / "metrics.jsonl", "w") as metrics:
        for step in range(1, steps + 1):
            its = miniature_rows(rng, step, count, diagnosed, scored)
            directory.write_rows(step, to_table(its))
            metrics.write(json.dumps({"step": step, "student/entropy": 0.5 / step, "teacher/entropy": 0.1}) + "\n")
            rows += [one | {"step": step} for one in its]
    for name, step in (("base", 0), ("trained", steps)):
        answers = [Answer(f"p{i}", i < 3 + step, 5, False, True) for i in range(12) for _ in range(2)]
        found = score(answers, name=name, step=step, version=step, resamples=100, seed=0)
        directory.write_evaluation(found, [one | {"y_r": None} for one in miniature_rows(rng, 1, 4, 0, False)])
    directory.release()
    return rows
