"""A comparison as it is written down: modes, bases, methods, their seeds, and how learning rates are tuned.

comparison.yaml  ->  Comparison, or a ValidationError whose sentences `grid.load` tells
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from trd_ray import config
from trd_ray.config import Node, keys
from trd_ray.config.effects import COMPARISON, TUNING

GIVEN = {"name": "name", "run_dir": "directory", "seed": "seeds"}  # key of a recipe -> what the comparison sets it by
SHARED = keys.at_the_top(COMPARISON)
OF_TUNING = keys.at_the_top(TUNING)
FOLDERS = ("base", "tuning", "logs", "cells", "curves", "failures")  # next to those of modes and methods
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _as_list(seeds: Any) -> Any:
    """A number of seeds as the seeds from 0 on."""
    return list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("holds a seed twice")
    return seeds


Seeds = Annotated[list[int], BeforeValidator(_as_list), AfterValidator(_different), Field(min_length=1)]


class Mode(Node):
    recipe: str = Field(description="a YAML file, or the name of a shipped recipe")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, as a tree")


class StartingPoint(Node):
    """A base model with its problems."""

    set: dict[str, Any] = Field(default_factory=dict, description="student, data, evaluation and what else differs")
    modes: dict[str, dict[str, Any]] = Field(default_factory=dict, description="mode -> what differs in it: a teacher")


class Method(Node):
    set: dict[str, Any] = Field(default_factory=dict)
    modes: dict[str, dict[str, Any]] = Field(default_factory=dict, description="mode -> what differs in it")
    seeds: Seeds | None = Field(default=None, description="default: those of the comparison")
    only_in: list[str] | None = Field(default=None, min_length=1, description="modes; default: all of them")


class Tuning(Node):
    """Each method is trained once with each learning rate; the one with the highest Avg@k goes into its final runs.

    While the best one is at an end of the grid, the grid gets one more there, at the same ratio, at most `widenings`
    times.
    """

    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    widenings: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    set: dict[str, Any] = Field(default_factory=dict, description="other problems (evaluation) and fewer steps")


class Comparison(Node):
    name: str
    directory: str | None = Field(default=None, description="default: runs/<name>")
    seeds: Seeds = Field(description="a list, or how many from 0 on")
    against: str | None = Field(default=None, description="a method: each other is compared with it, as with the base")
    budget: str | None = Field(
        default=None, description="a method: equal tokens and seconds are what it spends; default: the first one"
    )
    claims: bool = Field(default=False, description="write claims.md, by the rules of trd_ray/compare/claims.py")
    modes: dict[str, Mode] = Field(min_length=1)
    bases: dict[str, StartingPoint] = Field(
        default_factory=dict, description="base models, each with its problems; empty: that of the recipes"
    )
    families: dict[str, list[str]] = Field(
        default_factory=dict, description="methods that share a learning rate: the first one of each is tuned"
    )
    set: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(min_length=1)
    tuning: Tuning | None = Field(default=None, description="empty: learning rates are those of the recipes")

    @property
    def path(self) -> Path:
        return Path(self.directory or f"runs/{self.name}").expanduser().absolute()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return config.folder_name(name)

    @field_validator("directory")
    @classmethod
    def _is_a_path(cls, directory: str | None) -> str | None:
        return config.plain_path(directory)

    @model_validator(mode="after")
    def _possible(self) -> "Comparison":
        for kind, names in (("modes", self.modes), ("methods", self.methods), ("bases", self.bases)):
            for name in names:
                if not NAME.fullmatch(name) or name in FOLDERS:
                    raise ValueError(
                        f"{kind}.{name} cannot be the name of a folder of runs: use letters, digits, _ and -, and "
                        f"none of {', '.join(FOLDERS)}"
                    )
        for key, named in (("against", self.against), ("budget", self.budget)):
            if named is not None and named not in self.methods:
                raise ValueError(f"{key} names no method{config.did_you_mean(named, list(self.methods))}")
        self._modes_exist()
        self._families_are_apart()
        for where, tree, methods_own in self._layers():
            for key in tree:
                if key in GIVEN:
                    raise ValueError(f"{where} sets {key}, which every cell gets from the comparison's {GIVEN[key]}")
                if methods_own and key in SHARED:
                    raise ValueError(
                        f"{where} sets {key}, which must be equal for all methods: move it to `set`, or to a mode's"
                    )
            if methods_own and self.tuning and "lr" in (tree.get("learner") or {}):
                raise ValueError(f"{where} sets learner.lr, which is tuned: leave one of them out")
        for key in self.tuning.set if self.tuning else ():
            if key not in OF_TUNING:
                raise ValueError(f"tuning.set.{key} is not for tuning alone (known here: {', '.join(OF_TUNING)})")
        return self

    def _modes_exist(self) -> None:
        named = [
            (f"{kind}.{name}.modes.{mode}", mode)
            for kind, parts in (("methods", self.methods), ("bases", self.bases))
            for name, part in parts.items()
            for mode in part.modes
        ]
        named += [(f"methods.{name}.only_in", mode) for name, one in self.methods.items() for mode in one.only_in or ()]
        for where, mode in named:
            if mode not in self.modes:
                raise ValueError(
                    f"{where} names no mode of the comparison{config.did_you_mean(mode, list(self.modes))}"
                )
        for mode in self.modes:
            if not self.methods_of(mode):
                raise ValueError(f"modes.{mode} has no method: leave it out, or name it in a method's only_in")

    def _families_are_apart(self) -> None:
        if self.families and not self.tuning:
            raise ValueError("families share a learning rate, but nothing is tuned: set tuning, or leave families out")
        of: dict[str, str] = {}
        for family, methods in self.families.items():
            for method in methods:
                if method not in self.methods:
                    hint = config.did_you_mean(method, list(self.methods))
                    raise ValueError(f"families.{family} holds {method!r}, which is no method{hint}")
                if method in of:
                    raise ValueError(f"families.{family} and families.{of[method]} both hold {method!r}: take one out")
                of[method] = family

    def methods_of(self, mode: str) -> list[str]:
        return [name for name, one in self.methods.items() if mode in (one.only_in or self.modes)]

    def seeds_of(self, method: str) -> list[int]:
        return self.methods[method].seeds or self.seeds

    def seeds_of_base(self, mode: str) -> list[int]:
        """Every seed that any method of the mode has, so that each run has a base to be compared with."""
        return sorted({seed for method in self.methods_of(mode) for seed in self.seeds_of(method)})

    @property
    def base_names(self) -> list[str]:
        """The bases; "" is that of the recipes."""
        return list(self.bases) or [""]

    def tuned_for(self, mode: str, method: str) -> str:
        """The method whose tuning gives this one its learning rate: the first of its family in the mode, or itself."""
        here = self.methods_of(mode)
        family = next((methods for methods in self.families.values() if method in methods), [method])
        return next(name for name in family if name in here or name == method)

    def _layers(self) -> Iterator[tuple[str, dict, bool]]:
        """Each layer that the file holds: (where, tree, whether it belongs to a method)."""
        yield "set", self.set, False
        for name, mode in self.modes.items():
            yield f"modes.{name}.set", mode.set, False
        for name, base in self.bases.items():
            yield f"bases.{name}.set", base.set, False
            for mode, tree in base.modes.items():
                yield f"bases.{name}.modes.{mode}", tree, False
        for name, method in self.methods.items():
            yield f"methods.{name}.set", method.set, True
            for mode, tree in method.modes.items():
                yield f"methods.{name}.modes.{mode}", tree, True
