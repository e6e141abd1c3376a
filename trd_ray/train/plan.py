"""What a run has to do: the step from which it goes on, the checkpoint to load, or why nothing is left.

recipe, what its directory holds  ->  plan()  ->  RunPlan, or a UserError before anything starts
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trd_ray.config import Recipe, stored
from trd_ray.errors import UserError
from trd_ray.preflight.lengths_of_each import carried
from trd_ray.record.beacon import require_dark
from trd_ray.record.directory import RunDirectory, require_same
from trd_ray.record.mirrored import Mirrored
from trd_ray.session.inputs import Inputs

# "auto" begins a run if there is none, goes on with one that is there, and accepts one that is done.
Resume = Literal["no", "required", "auto"]


@dataclass(frozen=True)
class RunPlan:
    done: int  # how many steps are done
    checkpoint: Path | None  # the state after them; None for the initial weights, and for a corpus
    finished: str = ""  # why nothing is left to do


def require_refinements(recipe: Recipe) -> None:
    if not recipe.refines:
        raise UserError(
            f"train.trajectory={recipe.train.trajectory} makes no refinements: set train.trajectory=y_r, or repair to "
            "refine only attempts that failed"
        )


def mirror_of(recipe: Recipe, resume: Resume) -> Mirrored | None:
    """What the run's mirror holds, None if the recipe has no mirror.

    Raises UserError if the run is under way on another machine, or if the mirror is another run's.
    """
    mirrored = Mirrored.of(recipe)
    if mirrored is None:
        return None
    require_dark(mirrored.place, recipe.directory, say=print)
    here = recipe.directory / "recipe.yaml"
    if mirrored.manifest is None:
        return mirrored
    if here.is_file():
        require_same(mirrored.stored_recipe(), stored(here), mirrored.place.url)
    elif resume == "no":
        mirrored.refuse_new_run()
    return mirrored


def to_resume(recipe: Recipe, resume: Resume, mirrored: Mirrored | None = None) -> Recipe:
    """The recipe with the lengths that the run began with, if it goes on and the recipe does not set them.

    Raises UserError if the mirror, from which the run would be restored, holds a run of another recipe.
    """
    place = recipe.directory / "recipe.yaml"
    if resume == "no":
        return recipe
    if mirrored and mirrored.is_ahead:
        began = mirrored.stored_recipe()
        resumed = carried(recipe, began)
        require_same(began, resumed, mirrored.place.url)
        return resumed
    return carried(recipe, stored(place)) if place.is_file() else recipe


def is_begun(recipe: Recipe, resume: Resume) -> bool:
    """Whether the directory should hold a run that was begun."""
    return resume == "required" or (resume == "auto" and (recipe.directory / "recipe.yaml").is_file())


def seems_done(inputs: Inputs, resume: Resume) -> bool:
    """Whether nothing is left to do, by a look at a directory that is not claimed yet; such a run needs no nodes."""
    if not is_begun(inputs.recipe, resume):
        return False
    directory = RunDirectory(inputs.recipe.directory)
    if inputs.job == "train":
        return _has_ended(inputs, directory, max((step for step, _ in directory.checkpoints()), default=0))
    return bool(_corpus(inputs, directory, begun=True).finished)


def plan(inputs: Inputs, directory: RunDirectory, begun: bool, resume: Resume, has_mirror: bool = False) -> RunPlan:
    """What is left to do; raises UserError if nothing is, or if the directory is another job's.

    A run that is done is accepted with "auto", and if it `has_mirror`, which may lack something.
    """
    planned = (_training if inputs.job == "train" else _corpus)(inputs, directory, begun)
    if planned.finished:
        if resume != "auto" and not has_mirror:
            raise UserError(f"{planned.finished}: raise steps to go on")
    elif inputs.job == "train":
        _require_run(directory, planned.done, inputs.recipe.checkpoint.every_steps, resume)
    return planned


def _training(inputs: Inputs, directory: RunDirectory, begun: bool) -> RunPlan:
    done, folder = (directory.resume_point() if begun else None) or (0, None)
    ended = begun and _has_ended(inputs, directory, done)
    finished = f"the run in {directory.path} has done its {inputs.total_steps} steps" if ended else ""
    return RunPlan(done, folder, finished)


def _has_ended(inputs: Inputs, directory: RunDirectory, done: int) -> bool:
    evaluation = inputs.recipe.evaluation
    scored = all((directory.path / "evaluation" / of / "trained.json").exists() for of in evaluation.names)
    steps = inputs.total_steps
    return done > steps or (done == steps and (scored or not (evaluation.names and evaluation.after)))


def _corpus(inputs: Inputs, directory: RunDirectory, begun: bool) -> RunPlan:
    steps = inputs.total_steps
    done = len(directory.read_metrics()) if begun else 0
    finished = f"the corpus in {directory.path} is complete ({steps} steps)" if begun and done >= steps else ""
    return RunPlan(done, None, finished)


def _require_run(directory: RunDirectory, done: int, every_steps: int, resume: Resume) -> None:
    """Refuse to train on a corpus's directory, or to begin again, unasked, a run that must have had checkpoints."""
    lines = directory.read_metrics()
    if lines and "lr" not in lines[0]:
        raise UserError(
            f"{directory.path} holds a corpus that `trd refine` made: set run_dir to a new place, and to train on the "
            f"corpus data.source=corpus data.path={directory.path}"
        )
    recorded = len(lines)
    if done == 0 and recorded > 2 * every_steps and resume == "auto":
        raise UserError(
            f"the run in {directory.path} has recorded {recorded} steps, but checkpoints/ there holds none, though one "
            f"is written every {every_steps}: put them back, or say --resume (without auto) to begin again, which "
            "moves the recorded steps to rewound/"
        )
