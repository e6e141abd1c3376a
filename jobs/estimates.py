"""What the shipped recipes cost by the model, beside the hours that the paper reports.

    python jobs/estimates.py                              # every recipe of the paper, on 8 H100
    python jobs/estimates.py --on 8xH200 --price 2.5 paper_opsd_8b

The first lines are the paper's own schedule (everything sampled, everything refined, then everything trained, each on
all 8 GPUs), and the recipes as they stood at commit 1d173b9, with 128 rollouts a step and 32 rows a block.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trd_ray import config  # noqa: E402
from trd_ray.economics import offline, told  # noqa: E402
from trd_ray.economics.case import Case  # noqa: E402
from trd_ray.errors import UserError  # noqa: E402
from trd_ray.known_models import facts_of_recipe  # noqa: E402
from trd_ray.session.dry import placed_elsewhere  # noqa: E402
from trd_ray.session.estimated import Asked, estimate  # noqa: E402

PROBLEMS = 40_245
REPORTED = {  # arXiv:2606.08432: recipe, trajectory -> hours on 8 H100
    ("paper_opsd_8b", "y_r"): 9 + 20 / 60,
    ("paper_opsd_8b", "y_o"): 9 + 40 / 60,
    ("paper_opd_1p7b", "y_r"): 8 + 10 / 60,
    ("paper_opd_1p7b", "y_o"): 4 + 40 / 60,
}
AS_THEY_STOOD = ["rollouts_per_step=128", "steps=314", "stream={rows_per_block: 32}", "refiner.extra={}"]
FORMER = {
    "paper_opsd_8b": [*AS_THEY_STOOD, "sampler.replicas=3", "refiner.replicas=1", "learner.workers=4"],
    "paper_opd_1p7b": [*AS_THEY_STOOD, "sampler.replicas=4", "refiner.replicas=2", "learner.workers=2"],
}
HEAD = ["run", "step, s", "sample", "refined", "train", "at work: sampler, refiner, learner", "idle", "training, h",
        "in all, h", "reported, h"]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--on", default="8xH100", help="as for trd train --dry-run")
    parser.add_argument("--price", type=float, help="of a GPU-hour")
    options = parser.parse_args(arguments)
    names = options.recipes or sorted(
        path.stem for path in config.recipe_path("paper_opsd_8b").parent.glob("paper_*.yaml")
    )
    try:
        rows = [*schedules(options.on), *former(options.on)] if not options.recipes else []
        rows += [of_recipe(name, [], options.on, options.price) for name in names]
    except UserError as e:
        print(f"estimates.py: {e}", file=sys.stderr)
        return 2
    head = [*HEAD, "price"] if options.price else HEAD
    for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]:
        print(f"| {' | '.join([*row, '-'][: len(head)] if len(row) < len(head) else row)} |")
    return 0


def schedules(on: str) -> list[list[str]]:
    """The paper's schedule: one pass over all problems, each phase on all GPUs."""
    found = []
    for (name, trajectory), reported in REPORTED.items():
        parts = offline_hours(name, trajectory, on)
        what = "TRD" if trajectory == "y_r" else "plain"
        hours = [f"{one:.1f} h" if one else "-" for one in parts]
        found.append(
            [f"the paper's schedule, {name}, {what}", "-", hours[0], hours[1], hours[2], "-", "-", f"{sum(parts):.1f}",
             "-", f"{reported:.1f}"]
        )  # fmt: skip
    return found


def offline_hours(name: str, trajectory: str, on: str = "8xH100") -> tuple[float, float, float]:
    """Hours of sampling, refining and training."""
    view = "refine" if trajectory == "y_r" else "vanilla"
    recipe = config.load(name, [f"train.trajectory={trajectory}", f"teacher.view={view}"])
    student, teachers = facts_of_recipe(recipe)
    resolved, placed = placed_elsewhere(recipe, "train", on)
    return offline.hours(Case(resolved, student, teachers, placed), PROBLEMS, round(placed.has["GPU"]))


def former(on: str) -> list[list[str]]:
    return [of_recipe(name, overrides, on, None, f"{name} at 1d173b9") for name, overrides in FORMER.items()]


def of_recipe(name: str, overrides: list[str], on: str, price: float | None, title: str = "") -> list[str]:
    found = estimated(name, overrides, on, price)
    if found is None:
        raise UserError(f"{name} does not fit {on}: trd train {name} --dry-run --on {on} says why")
    cost, step = found.cost, found.cost.step
    busy = ", ".join(f"{pool.busy:.0%}" for pool in cost.pools.values())
    idle = f"{cost.idle:.0%}" if cost.idle is not None else "-"
    reported = REPORTED.get((name, "y_r"))
    row = [
        title or name, f"{step.step_s:.0f}", f"{step.sample_s:.0f}", f"{step.refine_ends_s:.0f}", f"{step.train_s:.0f}",
        busy, idle, f"{cost.training_h:.1f}", f"{cost.hours:.1f}", f"{reported:.1f}" if reported else "-",
    ]  # fmt: skip
    money = cost.price(price) if price else None
    return [*row, f"{money:,.0f}"] if money else row


def estimated(
    name: str, overrides: list[str], on: str = "8xH100", price: float | None = None
) -> told.CostEstimate | None:
    recipe = config.load(name, overrides)
    student, teachers = facts_of_recipe(recipe)
    resolved, placed = placed_elsewhere(recipe, "train", on)
    return estimate(resolved, student, teachers, placed, "train", Asked(price=price), changes=False)


if __name__ == "__main__":
    sys.exit(main())
