"""Cases of recipes on clusters that are not here."""

from trd_ray import config
from trd_ray.economics import constants as c
from trd_ray.economics.case import Case
from trd_ray.economics.same_gpus import Plan
from trd_ray.known_models import facts_of_recipe
from trd_ray.preflight import placement
from trd_ray.session.dry import placed_elsewhere
from trd_ray.session.estimated import problems_of


def case(name: str, *overrides: str, on: str = "8xH100") -> Case:
    recipe = config.load(name, list(overrides))
    student, teachers = facts_of_recipe(recipe)
    resolved, placed = placed_elsewhere(recipe, "train", on)
    assert placed.fits, placed.reasons
    steps = resolved.steps or c.ROWS_OF[resolved.data.path] // resolved.rollouts_per_step
    held_out = {"": problems_of(resolved.evaluation.path or "") or 0}
    return Case(resolved, student, teachers, placed, steps, held_out)


def planner(of: Case) -> Plan:
    def plan(recipe: config.Recipe) -> placement.Placement:
        return placement.plan(recipe, of.student, of.teachers, of.placed.machines, longest_sequence_tokens=38_912)

    return plan
