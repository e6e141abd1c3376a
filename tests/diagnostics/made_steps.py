"""Made-up rows of a step, as the learner and the stages would leave them."""

from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray.rows import to_table

FIELDS = ("kl", "student_nll", "teacher_nll", "onset")


def scored(y: str, view: str, trained: bool = False, **values: Any) -> dict:
    """An entry of `scored`. Fields that are not given are zeros, as many as the others."""
    size = max((len(one) for one in values.values() if one is not None), default=0)
    return {"trajectory": y, "view": view, "trained": trained} | {n: [0.0] * size for n in FIELDS} | values


def random_scored(rng: np.random.Generator, y: str, view: str, size: int, trained: bool = False) -> dict:
    drawn = {name: rng.exponential(0.5, size).astype(np.float16).tolist() for name in FIELDS}
    return scored(y, view, trained, **drawn)


def response(ids: list[int] | np.ndarray, passed: bool | None = True, **columns: Any) -> dict:
    return {"ids": list(map(int, ids)), "passed": passed, "finish": "stop", "text": "", "extracted": "5"} | columns


def row(number: int, **columns: Any) -> dict:
    plain = {"problem_id": f"p{number}", "problem": "?", "answer": "5", "reference": "", "row": number, "step": 1}
    return plain | {"epoch": 0, "sample_index": 0, "seed": number, "train": True, "dropped_because": ""} | columns


def random_rows(
    rng: np.random.Generator, count: int, *, step: int = 1, first: int = 0, diagnosed: int = 0
) -> list[dict]:
    """Rows that trained on y_r under the refine view; the first `diagnosed` of them are scored on all four kinds."""
    rows = []
    for i in range(count):
        y_o = rng.integers(0, 20, rng.integers(1, 40))
        y_r = y_o[rng.random(len(y_o)) < 0.8] if len(y_o) > 3 else y_o
        sizes = {"y_o": len(y_o), "y_r": len(y_r)}
        entries = [random_scored(rng, "y_r", "refine", len(y_r), trained=True)]
        if i < diagnosed:
            others = [("y_o", "refine"), ("y_o", "vanilla"), ("y_r", "vanilla")]
            entries += [random_scored(rng, y, view, sizes[y]) for y, view in others]
        logprobs = (-rng.exponential(0.3, len(y_o))).tolist()
        rows.append(
            row(
                first + i, step=step, trajectory="y_r", scored=entries,
                y_o=response(y_o, bool(rng.random() < 0.5), logprobs=logprobs),
                y_r=response(y_r, bool(rng.random() < 0.8)),
            )
        )  # fmt: skip
    return rows


def step_table(*rows: dict) -> pa.Table:
    return to_table(list(rows))
