"""What was reported for a recipe, and what counts as reproduced: tables that were written down before any run.

    figures/<recipe>.yaml, or a file of one's own  ->  load()  ->  Figures

    source: where the figures were reported
    benchmarks:
      aime24:                                   a benchmark as `trd evaluate` takes it
        avg@16: {reported: 49.4, gain: 4.6, score_at_least: 46.4, gain_above: 0}
    rollouts:
      y_r/passed: {reported: 81.4}              a metric of a step, as a mean over the run's steps

Shares are in percent. A figure without a criterion is shown and not judged.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from trd_ray import config
from trd_ray.config import Node
from trd_ray.errors import UserError

FOLDER = Path(str(resources.files("trd_ray"))) / "reproduce" / "figures"
MEASURE = re.compile(r"(avg|pass)@([1-9]\d*)")
CRITERIA = ("score_at_least", "gain_above", "gain_below")


class Figure(Node):
    """A reported value, and the criteria that ours has to meet."""

    reported: float | None = None
    gain: float | None = Field(default=None, description="trained - base, as reported")
    score_at_least: float | None = Field(default=None, description="our score reaches it")
    gain_above: float | None = Field(default=None, description="the whole interval of our gain lies above it")
    gain_below: float | None = Field(default=None, description="the whole interval of our gain lies below it")


class Figures(Node):
    source: str
    benchmarks: Annotated[dict[str, dict[str, Figure]], Field(min_length=1)]
    rollouts: dict[str, Figure] = Field(default_factory=dict)

    @field_validator("benchmarks")
    @classmethod
    def _measures(cls, benchmarks: dict[str, dict[str, Figure]]) -> dict[str, dict[str, Figure]]:
        for name, figures in benchmarks.items():
            for measure in figures:
                if not MEASURE.fullmatch(measure):
                    raise ValueError(f"{name} has the measure {measure}, but a measure is avg@N or pass@N")
        return benchmarks

    @field_validator("rollouts")
    @classmethod
    def _has_no_gain(cls, rollouts: dict[str, Figure]) -> dict[str, Figure]:
        for metric, figure in rollouts.items():
            if figure.model_fields_set & {"gain", "gain_above", "gain_below"}:
                raise ValueError(f"{metric} has a gain, but a metric of the steps has no base: leave it out")
        return rollouts


def load(recipe: str, file: str | None = None) -> Figures:
    """The figures of a recipe, given by its file or its name, or those in `file`. Raises UserError."""
    path = Path(file) if file else _shipped(recipe)
    if not path.is_file():
        raise UserError(f"there is no file {path}: --figures names a YAML file like those in {FOLDER}")
    tree = config.read_tree(path, str(path))
    try:
        return Figures.model_validate(tree)
    except ValidationError as e:
        raise UserError("; ".join(f"{path}: {_sentence(error)}" for error in e.errors())) from e


def names() -> list[str]:
    """The recipes that have figures."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def asked(figures: Figures, named: list[str]) -> dict[str, str]:
    """Benchmark of the figures -> how `trd evaluate` is told to read it: all of them, or those that are `named`.

    A name may say where the benchmark lies, as in aime24:/data/aime24.jsonl. Raises UserError for any other.
    """
    if not named:
        return {name: name for name in figures.benchmarks}
    found: dict[str, str] = {}
    for spec in named:
        name = spec if spec in figures.benchmarks else spec.partition(":")[0]
        if name not in figures.benchmarks:
            known = config.did_you_mean(name, list(figures.benchmarks))
            raise UserError(f"the figures have no benchmark {spec}{known}: name some that they have, or none for all")
        found[name] = spec
    return found


def _shipped(recipe: str) -> Path:
    name = config.recipe_path(recipe).stem
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"there are no figures to compare {name} with (there are for {', '.join(names())}): name a file of your "
            "own with --figures"
        )
    return path


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            group = Figures if len(error["loc"]) == 1 else Figure
            return f"unknown key {where}{config.did_you_mean(str(error['loc'][-1]), list(group.model_fields))}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
        case "too_short":
            return f"{where} is empty"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, but found {error['input']!r}"
