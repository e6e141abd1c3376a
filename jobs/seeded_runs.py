"""What the jobs share that make runs of several seeds in one directory: their arguments, and a run as a process.

    parser(name, doc)                ->  --directory, --seeds, key.sub=value ...; the job adds its own
    trees of recipes                 ->  train_all()  ->  `trd train` of each that is not done
    passes of a seed each, problems  ->  share_by_problem()

A run goes on where an earlier start ended. Mistakes in the options raise UserError.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from trd_ray.errors import UserError
from trd_ray.files import write_atomically


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text}")
    return int(text)


def folder(text: str) -> Path:
    place = Path(text).expanduser().absolute()
    if place.exists() and not place.is_dir():
        raise argparse.ArgumentTypeError(f"must be a directory, but {text} is a file")
    return place


def described(name: str, description: str | None) -> Parser:
    """A parser without options. Mistakes raise UserError."""
    return Parser(prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parser(name: str, description: str | None, *, seeds: int | None = 3, overrides: bool = True) -> Parser:
    """The options that such jobs share. `seeds` is the default of --seeds, which is left out for None."""
    made = described(name, description)
    made.add_argument("--directory", type=folder, required=True, help="of all that is made; started again, it goes on")
    if seeds is not None:
        made.add_argument("--seeds", type=whole, default=seeds, help="runs of each kind (default: %(default)s)")
    if overrides:
        made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run")
    return made


def train(tree: Mapping[str, Any]) -> int:
    """One run, in a process of its own; it goes on where an earlier start ended. Returns its exit code."""
    recipe = Path(tree["run_dir"]).with_suffix(".yaml")
    write_atomically(recipe, yaml.safe_dump(dict(tree), sort_keys=False))
    return subprocess.run([sys.executable, "-m", "trd_ray.cli", "train", str(recipe), "--resume=auto"]).returncode


def is_scored(tree: Mapping[str, Any]) -> bool:
    """Whether the run has its last evaluation."""
    return (Path(tree["run_dir"]) / "evaluation" / "trained.json").is_file()


def train_all(trees: Iterable[Mapping[str, Any]], is_done: Callable[[Mapping[str, Any]], bool] = is_scored) -> bool:
    """Make the runs that are not done; says so and returns False at the first that fails."""
    for tree in trees:
        if not is_done(tree) and train(tree):
            print(f"the run {tree['name']} failed: the same command goes on", file=sys.stderr)
            return False
    return True


def share_by_problem(answers: Sequence[Mapping[str, Sequence[bool]]], problems: Sequence[str]) -> np.ndarray:
    """[P]: the share of the samples of each of these problems that pass, averaged over the seeds."""
    return np.mean([[np.mean(one[problem]) for problem in problems] for one in answers], axis=0)
