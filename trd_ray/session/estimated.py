"""What a run would cost, for `--dry-run`: on the cluster at hand or on one that `--on` describes.

    recipe, models, placement, what was read of the data | --like RUN  ->  estimate()  ->  told.CostEstimate, or why not

A placement that does not fit has no cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trd_ray.config import Recipe, of_each
from trd_ray.economics import constants, same_gpus, told
from trd_ray.economics.calibration import Measured
from trd_ray.economics.case import Case
from trd_ray.economics.run_cost import run_cost
from trd_ray.errors import UserError
from trd_ray.models import ModelFacts
from trd_ray.preflight import placement
from trd_ray.problems.benchmarks.catalogue import BY_NAME

if TYPE_CHECKING:
    from trd_ray.session.inputs import Inputs


@dataclass(frozen=True)
class Asked:
    """What the command line adds."""

    like: str | None = None  # a run
    price: float | None = None  # of a GPU-hour


@dataclass(frozen=True)
class Known:
    """What was read of the data; without it the rows of the data sets that recipes name are known."""

    steps: int | None = None
    epoch_rollouts: int | None = None
    held_out: Mapping[str, int] | None = None
    prompt_tokens: int | None = None


def estimate(
    recipe: Recipe,
    student: ModelFacts,
    teachers: Mapping[str, ModelFacts],
    placed: placement.Placement,
    job: placement.Job,
    asked: Asked,
    known: Known | None = None,
    longest_sequence_tokens: int = 0,
    changes: bool = True,
) -> told.CostEstimate | None:
    """The estimate of a run of `train` or `refine`, with `changes` also what would be faster.

    Raises UserError for a run of --like that tells nothing.
    """
    if not placed.fits or job == "evaluate":
        return None
    known = known or _without_data(recipe)
    case = Case(recipe, student, teachers, placed, known.steps, known.held_out or {}, known.prompt_tokens)
    measured = _like(asked.like, case) if asked.like else None
    case = replace(case, measured=measured)

    def plan(other: Recipe) -> placement.Placement:
        return placement.plan(
            other, student, teachers, placed.machines, job=job, longest_sequence_tokens=longest_sequence_tokens
        )

    trains = changes and job == "train"
    return told.CostEstimate(
        cost=run_cost(case),
        faster=same_gpus.faster(case, plan) if trains else [],
        plain=same_gpus.plain_opd(case, plan) if trains else None,
        rollouts=recipe.rollouts_per_step,
        epoch_rollouts=known.epoch_rollouts,
        measured=measured,
        price=asked.price,
        plain_is_opsd=recipe.shows_reference,
    )


def cost_of(inputs: "Inputs", placed: placement.Placement, asked: Asked) -> told.CostEstimate | None:
    """The estimate of a run whose data was read."""
    findings = inputs.findings
    held_out = {} if inputs.held_out is None else {"": inputs.held_out.num_rows}
    held_out |= {name: found.num_rows for name, found in inputs.held_out_sets.items()}
    prompt = findings.student_prompt
    known = Known(
        steps=inputs.total_steps or None,
        epoch_rollouts=findings.problems * inputs.recipe.sampler.n or None,
        held_out=held_out,
        prompt_tokens=prompt.median if prompt else None,
    )
    return estimate(
        inputs.recipe, inputs.student, of_each(inputs.teacher), placed, inputs.job, asked, known,
        findings.longest_sequence_tokens,
    )  # fmt: skip


def _like(run: str, case: Case) -> Measured:
    # Scores come with scipy, which an estimate without a run does not need.
    from trd_ray.record import predicted
    from trd_ray.record.directory import RunDirectory

    place = Path(run).expanduser()
    if not place.exists() and (Path("runs") / run).exists():
        place = Path("runs") / run
    if not (place / "recipe.yaml").is_file():
        raise UserError(f"--like {run}: {place} is no run directory; name one, such as runs/miniature-opsd")
    return predicted.measured(RunDirectory.open(place), case)


def problems_of(path: str) -> int | None:
    """How many problems a benchmark has, by its name or its place on the hub; None for other data."""
    name = path.partition(":")[0]
    known = [
        entry.problems
        for entry in BY_NAME.values()
        if name == entry.name or path in (entry.repository, *entry.alternatives)
    ]
    return known[0] if known else None


def _without_data(recipe: Recipe) -> Known:
    """Of data sets and benchmarks that recipes name the numbers of problems are known."""
    rows = constants.ROWS_OF.get(recipe.data.path) if not recipe.data.sources else None
    if rows and recipe.data.limit:
        rows = min(rows, recipe.data.limit)
    rollouts = rows * recipe.sampler.n if rows else None
    steps = recipe.steps or (max(1, rollouts // recipe.rollouts_per_step) if rollouts else None)
    e = recipe.evaluation
    found = {}
    for name in e.names:
        one = e.of(name)
        if problems := problems_of(one.path or ""):
            found[name] = min(problems, one.limit or problems)
    return Known(steps, rollouts, found if len(found) == len(e.names) else None)
