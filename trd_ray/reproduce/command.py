"""`trd reproduce`: run a recipe, evaluate it on the benchmarks of its figures, and put theirs beside ours.

    plan -> trd train (run/) -> trd evaluate of the base (base/) and of the last checkpoint (trained/)
         -> reproduction.md, reproduction.json, a table

Each part is the program of that name, with its own directory, engines and end. Started again, the command goes on in
the part that was under way: finished parts find that nothing is left for them. Ctrl-C and crashes are what they are
there.

Exit codes: 0 every criterion is met, 1 one is not, or cannot be told from these samples, else as train and evaluate.
"""

from rich.console import Console

from trd_ray import config
from trd_ray.errors import UserError
from trd_ray.evaluate import command as evaluation
from trd_ray.evaluate import report as evaluated
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import console_for_results
from trd_ray.reproduce import judged, report
from trd_ray.reproduce.figures import Figures
from trd_ray.reproduce.plan import BASE, TRAINED, ReproductionPlan, of_directory, plan
from trd_ray.score.stats import Score, from_json
from trd_ray.session.dry import DryRun
from trd_ray.train import command as training


def dry_run(argument: str, overrides: list[str], figures: Figures, specs: dict[str, str], asked: DryRun) -> int:
    """Print the figures with their criteria, where each part goes, and the dry run of the training.

    The figures are shown also where something else is in the way. With `--json` only the training is printed.
    """
    recipe = config.load(argument, overrides)
    console = Console(quiet=True) if asked.json else console_for_results(width_of_a_log=140)
    title = report.titled(recipe, figures)
    if asked.on:
        console.print(report.rendered(title, judged.lines(figures, {}, []), []))
        return asked.elsewhere(recipe, "train")
    try:
        planned = plan(argument, overrides, figures, specs)
    except UserError:
        console.print(report.rendered(title, judged.lines(figures, {}, []), []))
        raise
    console.print(report.rendered(title, _lines(planned), []))
    for folder, what in ((planned.run, "the run"), (planned.base, "the base"), (planned.trained, "the trained model")):
        state = "begun" if (folder / "recipe.yaml").is_file() else "to do"
        console.print(f"{what}: {state}, {folder}", markup=False, soft_wrap=True)
    console.print()
    return training.dry_run(planned.recipe, "train", asked)


def run(argument: str, overrides: list[str], figures: Figures, specs: dict[str, str]) -> int:
    """Do what is left, then show and write the table; returns 0 if every criterion is met, else 1."""
    planned = plan(argument, overrides, figures, specs)
    print(f"1 of 3: training, in {planned.run}", flush=True)
    training.run(planned.recipe, "train", "auto")
    print(f"\n2 of 3: evaluating the base, in {planned.base}", flush=True)
    names = list(specs.values())
    evaluation.run(argument, names, [*overrides, of_directory(planned.base)], BASE, None)
    print(f"\n3 of 3: evaluating what was trained, in {planned.trained}", flush=True)
    evaluation.run(str(planned.run), names, [of_directory(planned.trained)], TRAINED, str(planned.base))
    return conclude(planned)


def conclude(planned: ReproductionPlan) -> int:
    """Write reproduction.md and .json from what the parts have left, and show the table."""
    lines = _lines(planned)
    notes = _notes(planned)
    place = report.write(planned, lines, notes)
    console = console_for_results(width_of_a_log=140)
    console.print(report.rendered(report.titled(planned.recipe, planned.figures), lines, notes))
    console.print(report.conclusion(lines), markup=False, soft_wrap=True)
    console.print(f"everything is in {planned.directory}, the report is {place.name}", soft_wrap=True, markup=False)
    return 0 if report.reproduced(lines) else 1


def _lines(planned: ReproductionPlan) -> list[judged.JudgedFigure]:
    scores: dict[str, tuple[Score | None, Score]] = {}
    found = {one["benchmark"]["name"]: one for one in evaluated.read(planned.trained)}
    for benchmark, file in planned.files.items():
        if one := found.get(file):
            base = from_json(one["base"]) if one["base"] else None
            scores[benchmark] = (base, from_json(one))
    steps = RunDirectory(planned.run).read_metrics() if (planned.run / "metrics.jsonl").is_file() else []
    return judged.lines(planned.figures, scores, steps)


def _notes(planned: ReproductionPlan) -> list[str]:
    """What a reader of the scores should know: how a benchmark is not as published, or the base was asked otherwise."""
    return [
        f"{one['benchmark']['name']}: {note}"
        for one in evaluated.read(planned.trained)
        for note in [*one["benchmark"]["notes"], *one["base_differs"]]
    ]
