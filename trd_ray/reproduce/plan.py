"""What a reproduction runs and where it puts it, and every check that can be made before the first of it starts.

recipe, overrides, benchmarks, figures  ->  plan()  ->  ReproductionPlan

<directory>/run                 the run of the recipe, as `trd train` makes it
<directory>/base, /trained      the evaluations of its student before and after, as `trd evaluate` makes them
<directory>/reproduction.md     the figures beside ours
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trd_ray import config
from trd_ray.config import Recipe
from trd_ray.errors import Faults, UserError
from trd_ray.evaluate.plan import plan as plan_evaluation
from trd_ray.evaluate.target import word
from trd_ray.record.metrics import metric_names
from trd_ray.reproduce.figures import Figures

RUN, BASE, TRAINED = "run", "base", "trained"  # the folders of the parts


@dataclass(frozen=True)
class ReproductionPlan:
    argument: str  # the recipe, as the user named it
    overrides: list[str]
    recipe: Recipe  # of the run
    figures: Figures
    specs: dict[str, str]  # benchmark of the figures -> how `trd evaluate` is told to read it
    files: dict[str, str]  # benchmark of the figures -> what an evaluation calls it
    directory: Path

    @property
    def run(self) -> Path:
        return self.directory / RUN

    @property
    def base(self) -> Path:
        return self.directory / BASE

    @property
    def trained(self) -> Path:
        return self.directory / TRAINED


def of_directory(folder: Path) -> str:
    """The override that puts results into a folder, whatever its name."""
    return f"run_dir={json.dumps(str(folder))}"  # a JSON string is one of YAML's


def plan(argument: str, overrides: list[str], figures: Figures, specs: dict[str, str]) -> ReproductionPlan:
    """Read the recipe and the benchmarks. Raises UserError for all that is wrong with them; nothing is started.

    The run's own data, models and placement are checked when it starts, which is the first thing that does.
    """
    recipe = config.load(argument, overrides)
    directory = Path(recipe.run_dir or f"runs/reproduce-{recipe.name}").expanduser().absolute()
    evaluation = plan_evaluation(argument, list(specs.values()), [*overrides, of_directory(directory / BASE)])
    faults = Faults()
    for benchmark, exam in zip(specs, evaluation.exams, strict=True):
        with faults:
            _require_measures(benchmark, figures.benchmarks[benchmark], exam.evaluation.samples)
    for metric in figures.rollouts:
        if metric not in metric_names():
            known = config.did_you_mean(metric, metric_names())
            faults.add(f"the figures name {metric}, which no step measures{known}")
    faults.require_none()
    files = {name: word(name) for name in figures.benchmarks}
    files |= {benchmark: exam.name for benchmark, exam in zip(specs, evaluation.exams, strict=True)}
    recipe = recipe.model_copy(update={"run_dir": str(directory / RUN)})
    return ReproductionPlan(argument, overrides, recipe, figures, specs, files, directory)


def _require_measures(benchmark: str, measures: Iterable[str], samples: int) -> None:
    """Raise UserError where the number of samples does not give a measure that the figures name."""
    for measure in measures:
        kind, _, k = measure.partition("@")
        if not (int(k) == samples if kind == "avg" else int(k) <= samples):
            raise UserError(
                f"the figures name {measure} of {benchmark}, which is not measured with {samples} samples a problem: "
                f"set evaluation.samples={k}"
            )
