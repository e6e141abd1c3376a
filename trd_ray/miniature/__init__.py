"""Two worlds small enough to measure Trajectory-Refined Distillation in minutes on two CPU cores, and SmolLM2.

                            arithmetic: chains of digits          code: programs over a list of numbers
miniature:student, :teacher, :train, :tune, :test                 :code_student, :code_teacher, :code_train, ...
miniature:student_1, :train_1, ...  another secret table          :code_student_1, ...
models    ->  model_path  ->  a Hugging Face folder, shipped with the package
problems  ->  problems    ->  rows of problem_id, problem, answer, reference; for code also tests

Importing this enters these names, `smollm2` and `word_problems:...` into `trd_ray.made_here`. The code that makes them
is imported when they are asked for.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from trd_ray import made_here

TRAIN_PROBLEMS = 3200
TEST_PROBLEMS = 200
TUNE_PROBLEMS = 200
SEED = 0

PREFIXES = ("", "code_")  # names in the world of arithmetic, and in that of code, begin so
MODELS = tuple(prefix + name for prefix in PREFIXES for name in ("student", "teacher"))
SPLITS = tuple(prefix + split for prefix in PREFIXES for split in ("train", "test", "tune"))
OTHER_TABLES = (1, 2)  # secret tables beside the one of the shipped models, for models that are built when asked for


def model_path(name: str) -> Path:
    """The folder of one of MODELS, also of another table (`student_1`): the shipped one, else one in the cache.

    One that is not in the cache is built first, with its other half: minutes.
    """
    name, table = _of_table(name)
    prefix, name = _split(name)
    shipped = Path(__file__).parent / ("code_world" if prefix else "") / "models" / name
    if shipped.is_dir() and not table:
        return shipped
    from rich.console import Console

    from trd_ray.miniature import build  # imports torch, which a look at the shipped folder does not need

    world = build.world_of("code" if prefix else "arithmetic", table)
    folder = build.cache_folder(world)
    build.build(folder, world, Console(stderr=True))
    return folder / name


def problems(split: str) -> list[dict]:
    """The problems of one of SPLITS, also of another table (`train_1`), always the same.

    "train" has 3200 chains of few and many steps. "test" and "tune" have 200 long ones each, held out.
    """
    split, table = _of_table(split)
    prefix, split = _split(split)
    of_world = _problems_of_world(prefix)
    if split == "train":
        return of_world("train", TRAIN_PROBLEMS, SEED, table)
    held_out = of_world("test", TEST_PROBLEMS + TUNE_PROBLEMS, SEED, table)
    return held_out[:TEST_PROBLEMS] if split == "test" else held_out[TEST_PROBLEMS:]


def _problems_of_world(prefix: str) -> Callable[..., list[dict]]:
    if prefix:
        from trd_ray.miniature.code_world import code_task

        return code_task.problems
    from trd_ray.miniature import task

    return task.problems


def _of_table(name: str) -> tuple[str, int]:
    """A name without its table, and the number of that: student_1 -> student, 1."""
    found = re.fullmatch(r"(\w+)_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _split(name: str) -> tuple[str, str]:
    prefix = "code_" if name.startswith("code_") else ""
    return prefix, name.removeprefix(prefix)


def _smollm2() -> Path:
    from trd_ray.miniature import smollm2

    return smollm2.folder()


def _word_problems(split: str) -> list[dict[str, Any]]:
    lines = (resources.files("trd_ray") / "recipes" / "word_problems.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.pop("split") == split]


@lru_cache(maxsize=8)
def _made(split: str) -> list[dict]:
    return problems(split)


def _asked_again(split: str) -> list[dict]:
    """`problems`, which a plan of many runs asks for once a run: those of code take 3 s, since each is tried out."""
    return [dict(row) for row in _made(split)]


def _with_tables(names: tuple[str, ...]) -> list[str]:
    return [*names, *(f"{name}_{table}" for table in OTHER_TABLES for name in names)]


made_here.MODELS |= {f"miniature:{name}": partial(model_path, name) for name in _with_tables(MODELS)}
made_here.MODELS["smollm2"] = _smollm2
made_here.PROBLEMS |= {f"miniature:{split}": partial(_asked_again, split) for split in _with_tables(SPLITS)}
made_here.PROBLEMS |= {f"word_problems:{split}": partial(_word_problems, split) for split in ("train", "test")}
made_here.RECIPES |= {
    f"miniature:{name}": "miniature_code_opsd" if name.startswith("code_") else "miniature_opsd"
    for name in _with_tables(MODELS)
}
