"""A recipe on 8 to 1,024 GPUs, from the model of its costs: efficiency, and what of the control plane is full first.

    python jobs/scale.py                                  # paper_opsd_8b, as many rollouts more as GPUs
    python jobs/scale.py paper_opd_1p7b --strong          # the same 512 rollouts on more and more GPUs
    python jobs/scale.py paper_opsd_8b stream.max_staleness=0 --kind H200

Nothing is started. The GPUs' part of a step is trd_ray.economics's; the control plane's is what jobs/bench_stream.py
measured on 2 cores for a row and an engine. Engines and ranks are the recipe's, times as many.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trd_ray import config  # noqa: E402
from trd_ray.economics.at_scale import Scaled, breaks_first, scaled  # noqa: E402
from trd_ray.economics.case import Case  # noqa: E402
from trd_ray.economics.run_cost import RunCost, run_cost  # noqa: E402
from trd_ray.errors import UserError  # noqa: E402
from trd_ray.known_models import facts_of_recipe  # noqa: E402
from trd_ray.session.dry import placed_elsewhere  # noqa: E402

A_NODE = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="paper_opsd_8b")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--kind", default="H100", help="of the GPUs, 8 a node, as trd train --dry-run --on has them")
    parser.add_argument("--strong", action="store_true", help="the recipe's rollouts, whatever the GPUs")
    options = parser.parse_args(arguments)
    try:
        lines = table(options.recipe, options.overrides, options.kind, options.strong)
    except UserError as e:
        print(f"scale.py: {e}", file=sys.stderr)
        return 2
    print(rendered(lines))
    print(f"\n{breaks_first(lines)}")
    return 0


def table(name: str, overrides: list[str], kind: str = "H100", strong: bool = False) -> list[Scaled]:
    """A line for each number of GPUs. Raises UserError for a recipe without GPUs, or that does not fit."""
    recipe = config.load(name, overrides)
    student, teachers = facts_of_recipe(recipe)
    own = _gpus(recipe, kind)

    def cost_of(times: int, rollouts: int) -> RunCost | None:
        more: dict[str, object] = {"rollouts_per_step": rollouts, "steps": 1}
        for group in ("sampler", "refiner"):
            engine = getattr(recipe, group)
            more[group] = engine.model_copy(update={"replicas": engine.bounds.start * times})
        more["learner"] = recipe.learner.model_copy(update={"workers": recipe.learner.ranks * times})
        nodes = -(-own * times // A_NODE)
        resolved, placed = placed_elsewhere(recipe.model_copy(update=more), "train", f"{nodes}x{A_NODE}x{kind}")
        case = Case(resolved, student, teachers, placed, steps=1)
        return run_cost(case) if placed.fits else None

    lines = scaled(cost_of, recipe.rollouts_per_step, own, strong)
    if not lines:
        raise UserError(
            f"{name} takes {own} GPUs of kind {kind}, which do not fit or are no divisor of 8: name another"
        )
    return lines


def _gpus(recipe: config.Recipe, kind: str) -> int:
    _, placed = placed_elsewhere(recipe, "train", f"32x{A_NODE}x{kind}")
    return round(placed.needs["GPU"])


def rendered(lines: list[Scaled]) -> str:
    parts = list(lines[0].full)
    head = ["GPUs", "rollouts", "step, s", "of which GPUs", "efficiency", *parts, "binds"]
    rows = [
        [
            str(one.gpus), f"{one.rollouts:,}", f"{one.step_s:.0f}", f"{one.gpu_s:.0f}", f"{one.efficiency:.0%}",
            *(f"{one.full[part]:.1%}" for part in parts), one.binds or "-",
        ]
        for one in lines
    ]  # fmt: skip
    ruler = ["---:"] * (len(head) - 1) + ["---"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


if __name__ == "__main__":
    sys.exit(main())
