"""What `--dry-run` prints, for the cluster at hand or for one that `--on` describes.

recipe, data, placement at hand  ->  show()       ->  text or JSON, and the exit code
recipe alone, --on 2x8xH100      ->  elsewhere()  ->  the same without data, tokenizers, network or Ray

What the run would cost comes last: see trd_ray.economics.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trd_ray.config import JUDGE_POOL, Recipe, dump, dump_differences
from trd_ray.economics import told
from trd_ray.errors import UserError
from trd_ray.known_models import facts_of_recipe, facts_without_files
from trd_ray.models import ModelFacts
from trd_ray.preflight import lengths, placement
from trd_ray.preflight.lengths_of_each import fit_each
from trd_ray.preflight.machines import described
from trd_ray.preflight.sharing import sharing
from trd_ray.preflight.shown import as_json, render
from trd_ray.session import estimated

PROMPT_TOKENS = 2048  # of a problem, in the paper; where nothing was read
UNREAD = "data, prompts and benchmarks were not read: --dry-run without --on does that, where they are"


@dataclass(frozen=True)
class DryRun:
    on: str | None = None
    gpu_gib: float | None = None
    full: bool = False
    json: bool = False
    costs: estimated.Asked = field(default_factory=estimated.Asked)

    def show(
        self,
        recipe: Recipe,
        notes: Sequence[str],
        findings: str,
        placed: placement.Placement,
        cost: told.CostEstimate | None = None,
    ) -> int:
        """Print it, and return 0 if the placement fits, else 2."""
        if self.json:
            tree = {"recipe": recipe.model_dump(mode="json"), "notes": list(notes), "found": findings}
            tree["cost"] = told.as_tree(cost) if cost else None
            print(json.dumps(tree | {"placement": as_json(placed)}, indent=1))
        else:
            for note in notes:
                print(note)
            if self.full:
                print(dump(recipe))
            else:
                print(f"{dump_differences(recipe)}# every other key has its default (--full prints all)\n")
            costs = f"\n{told.render(cost)}\n" if cost else ""
            print(f"{findings}\n{costs}\n{render(placed)}")
        return 0 if placed.fits else 2

    def elsewhere(self, recipe: Recipe, job: placement.Job) -> int:
        """Show the recipe on the machines of `--on`. Raises UserError, as `placed_elsewhere` does."""
        assert self.on is not None
        resolved, placed = placed_elsewhere(recipe, job, self.on)
        hint = sharing(resolved, job)
        student, teachers = facts_of_recipe(recipe)
        _, longest = _without_data(recipe, student, teachers)
        cost = estimated.estimate(resolved, student, teachers, placed, job, self.costs, longest_sequence_tokens=longest)
        return self.show(resolved, [hint] if hint else [], UNREAD, placed, cost)


def placed_elsewhere(recipe: Recipe, job: placement.Job, on: str) -> tuple[Recipe, placement.Placement]:
    """The recipe with all lengths, planned for machines that are not here.

    Raises UserError, also for a model of which nothing is known.
    """
    machines = described(on)
    student, teachers = facts_of_recipe(recipe)
    resolved, longest = _without_data(recipe, student, teachers)
    j = recipe.judge
    asked = j.path and JUDGE_POOL in placement.pools(recipe, job)
    return resolved, placement.plan(
        resolved, student, teachers, machines, job=job, longest_sequence_tokens=longest,
        judge=facts_without_files(j.path, j.revision, j.trust_remote_code) if asked and j.path else None,
    )  # fmt: skip


def asked(options: argparse.Namespace) -> DryRun | None:
    """What the command line asks for, None for no dry run. Raises UserError for options that mean nothing then."""
    full, as_json = (vars(options).get(name, False) for name in ("full", "json"))  # which `trd compare` does not take
    like, price = (vars(options).get(name) for name in ("like", "price"))
    said = {"on": options.on, "full": full, "json": as_json, "like": like, "price": price}
    given = [f"--{name}" for name, value in said.items() if value]
    if given and not options.dry_run:
        say = "says" if len(given) == 1 else "say"
        raise UserError(f"{' and '.join(given)} {say} what --dry-run shows: add --dry-run, or leave {given[0]} out")
    if options.on and options.gpu_gib:
        raise UserError("--gpu-gib and --on both say how large the GPUs are: leave --gpu-gib out")
    if (like or price) and options.command == "evaluate":
        raise UserError("--like and --price are about what a run costs that trains or refines: leave them out")
    costs = estimated.Asked(like, price)
    return DryRun(options.on, options.gpu_gib, full, as_json, costs) if options.dry_run else None


def _without_data(recipe: Recipe, student: ModelFacts, teachers: Mapping[str, ModelFacts]) -> tuple[Recipe, int]:
    """The recipe with a number for every length, and the longest sequence that it allows, whatever the problems are."""
    contexts = {name: lengths.Contexts.of(one, student, teachers[name]) for name, one in recipe.by_teacher.items()}
    resolved = fit_each(recipe, {}, (), contexts, student, teachers).recipe
    return resolved, max(_longest(one, contexts[name]) for name, one in resolved.by_teacher.items())


def _longest(resolved: Recipe, contexts: lengths.Contexts) -> int:
    shown = resolved.refiner.prompt_tokens
    if not resolved.loss.has_teacher or "refine" not in map(resolved.view_of, resolved.trains_on):
        shown = min(shown, PROMPT_TOKENS)
    longest = shown + max(lengths.trained_responses(resolved, lengths.SOLUTION_TOKENS).values())
    return min(longest, max(contexts.student, contexts.teacher))
