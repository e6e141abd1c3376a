"""Two worlds small enough to measure Trajectory-Refined Distillation in minutes on two CPU cores.

                            arithmetic: chains of digits          code: programs over a list of numbers
miniature:student, :teacher, :train, :tune, :test                 :code_student, :code_teacher, :code_train, ...
models    ->  model_path  ->  a Hugging Face folder, shipped with the package
problems  ->  problems    ->  rows of problem_id, problem, answer, reference; for code also tests
"""

from pathlib import Path

from trd_ray.miniature import task
from trd_ray.miniature.code import task as code

TRAIN_PROBLEMS = 3200
TEST_PROBLEMS = 200
TUNE_PROBLEMS = 200
SEED = 0

_WORLDS = {"": task, "code_": code}
MODELS = tuple(prefix + name for prefix in _WORLDS for name in ("student", "teacher"))
SPLITS = tuple(prefix + split for prefix in _WORLDS for split in ("train", "test", "tune"))


def model_path(name: str) -> Path:
    """The folder of one of MODELS: the shipped one, else one in the cache, which is built first if absent (minutes)."""
    prefix, name = _split(name)
    shipped = Path(str(_WORLDS[prefix].__file__)).parent / "models" / name
    if shipped.is_dir():
        return shipped
    from rich.console import Console

    from trd_ray.miniature import build  # imports torch, which a look at the shipped folder does not need

    world = build.WORLDS["code" if prefix else "arithmetic"]
    folder = build.cache_folder(world)
    build.build(folder, world, Console(stderr=True))
    return folder / name


def problems(split: str) -> list[dict]:
    """The recipes' problems, always the same: chains of few and many steps to train on, 200 held-out long ones to
    evaluate, and in the "tune" split 200 other held-out ones.
    """
    prefix, split = _split(split)
    of_world = _WORLDS[prefix].problems
    if split == "train":
        return of_world("train", TRAIN_PROBLEMS, SEED)
    held_out = of_world("test", TEST_PROBLEMS + TUNE_PROBLEMS, SEED)
    return held_out[:TEST_PROBLEMS] if split == "test" else held_out[TEST_PROBLEMS:]


def _split(name: str) -> tuple[str, str]:
    prefix = "code_" if name.startswith("code_") else ""
    return prefix, name.removeprefix(prefix)
