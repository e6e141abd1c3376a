"""A world small enough to measure Trajectory-Refined Distillation in minutes on two CPU cores.

miniature:student, miniature:teacher  ->  model_path  ->  a Hugging Face folder, shipped with the package
miniature:train, :tune, :test         ->  problems    ->  rows of problem_id, problem, answer, reference
"""

from pathlib import Path
from typing import Literal

from trd_ray.miniature import task

TRAIN_PROBLEMS = 3200
TEST_PROBLEMS = 200
TUNE_PROBLEMS = 200
SEED = 0


def model_path(name: Literal["student", "teacher"]) -> Path:
    """The folder of a model: the shipped one, else the one in the cache, which is built first if absent (minutes)."""
    shipped = Path(__file__).parent / "models" / name
    if shipped.is_dir():
        return shipped
    from rich.console import Console

    from trd_ray.miniature import build  # imports torch, which a look at the shipped folder does not need

    folder = build.cache_folder(build.Plan())
    build.build(folder, build.Plan(), Console(stderr=True))
    return folder / name


def problems(split: str) -> list[dict]:
    """The recipes' problems, always the same: 2 to 6 steps to train on, 200 held-out chains of 6 to evaluate.

    `split` is "train", "test" or "tune"; those to tune on are 200 other held-out chains of 6.
    """
    if split == "train":
        return task.problems("train", TRAIN_PROBLEMS, SEED)
    held_out = task.problems("test", TEST_PROBLEMS + TUNE_PROBLEMS, SEED)
    return held_out[:TEST_PROBLEMS] if split == "test" else held_out[TEST_PROBLEMS:]
