"""A finished cell as a small table: all that the tables of a comparison need of a run, a few kB that can be committed.

    CellTable  <->  cells/<mode>/<method>/<run>.jsonl

The first line says which cell it is, what the whole run cost, and what its recipe was. Each further line is an
evaluation: how far the run was in steps, generated tokens, prefilled tokens and seconds, and for each problem how many
answers passed, whether the majority did, and how many different answers there were. Problems stand in the order of
their ids.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trd_ray.compare.grid import Cell
from trd_ray.config import Recipe, keys
from trd_ray.config.effects import ANSWERS, LENGTH, NUMBERS, ROWS, SCORES, VERDICTS
from trd_ray.errors import UserError
from trd_ray.score.stats import measures_of_counts, shown

FOLDER = "cells"
AXES = ("tokens", "prefill", "seconds")
OF_A_SCORE = ROWS, NUMBERS, VERDICTS, ANSWERS, SCORES, LENGTH  # the effects that a cell's score depends on


@dataclass(frozen=True)
class Graded:
    """The answers to a set of problems, problem by problem."""

    samples: int
    problems: str  # digest of their ids
    correct: list[int]
    majority: list[float] | None = None  # 1 where the commonest answer is right; None without the answers themselves
    unique: list[int] | None = None  # different answers
    entropy: list[float] | None = None  # of the answers, in nats
    tokens_mean: float = 0.0
    truncated: float = 0.0
    answered: float = 0.0

    def measures(self) -> dict[str, np.ndarray]:
        """Avg@n, Pass@k for the ks that are shown, Pass@n and maj@n, a value for each problem."""
        found = measures_of_counts(np.array(self.correct), self.samples)
        kept = {name: found[name] for name in [*shown(self.samples), f"pass@{self.samples}"]}
        return kept | ({f"maj@{self.samples}": np.array(self.majority)} if self.majority is not None else {})


@dataclass(frozen=True)
class Point:
    """An evaluation of a run on its way; 0 steps are the base."""

    step: int
    tokens: int
    prefill: int
    seconds: float
    graded: dict[str, Graded]  # "" for evaluation.path, else the name of one of evaluation.sets


@dataclass(frozen=True)
class CellTable:
    kind: str
    mode: str
    method: str
    seed: int
    base: str
    lr: float | None
    cost: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)  # as `recipe_of`; of a base it is not kept

    @property
    def cell(self) -> Cell:
        return Cell(self.kind, self.mode, self.method, self.seed, self.lr if self.kind == "tuning" else None, self.base)  # pyright: ignore[reportArgumentType]

    @property
    def last(self) -> Point:
        return self.points[-1]

    def avg(self) -> float:
        """Avg@k of its last evaluation, as a share."""
        graded = self.last.graded[""]
        return float(np.mean(graded.correct)) / graded.samples

    def text(self) -> str:
        tree = asdict(self)
        lines = [{name: value for name, value in tree.items() if name != "points"}, *tree["points"]]
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def read(folder: Path) -> list[CellTable]:
    """Every table below a folder. Raises UserError where there is none, or one that cannot be read."""
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no tables of cells (*.jsonl): name the folder `{FOLDER}` of a comparison")
    return [read_table(file) for file in files]


def read_table(file: Path) -> CellTable:
    """Raises UserError where it is none."""
    try:
        head, *points = map(json.loads, file.read_text().splitlines())
        made = [Point(**one | {"graded": {of: Graded(**g) for of, g in one["graded"].items()}}) for one in points]
        table = CellTable(**head, points=made)
        table.last.graded[""]  # one without an evaluation is no table
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise UserError(f"{file} is no table of a cell ({type(e).__name__}: {e}): delete it, or take it anew") from e
    return table


def digest(texts: Iterable[str]) -> str:
    """What tells a set of texts, such as the ids of problems, from another."""
    return hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()[:12]


def recipe_of(recipe: Recipe) -> dict[str, Any]:
    """The tree of the keys that a cell's score depends on, with digests of the texts of functions."""
    tree = keys.only(recipe.model_dump(mode="json"), keys.affecting(*OF_A_SCORE))
    sources = {name: digest([text]) for name, text in recipe.verify.sources.items()}
    return tree | {"verify": tree["verify"] | {"sources": sources}}


def as_known(had: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The tree of a table, with what `now` says of keys that there were not when it was written."""
    inside = {key for key in had.keys() & now.keys() if had[key] and isinstance(had[key], dict)}
    return now | had | {key: as_known(had[key], now[key]) for key in inside if isinstance(now[key], dict)}
