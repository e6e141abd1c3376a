"""How a run is repeated: its recipe beside the defaults, the versions, the seeds and the command.

recipe.yaml, environment.json  ->  recipe_panel()  ->  markup
recipes of several runs        ->  recipes_panel() ->  the keys in which they differ
"""

import shlex
from typing import Any

from trd_ray.config import Recipe, flat
from trd_ray.report.panel import Panel
from trd_ray.report.recorded import Recorded
from trd_ray.report.rendering import rendered, shown

TITLE = "Recipe"
NAMES = ("name", "run_dir")  # keys in which runs always differ
TEXTS = "verify.sources"  # the text of functions, which no table holds


def recipe_panel(run: Recorded) -> Panel:
    defaults = dict(flat(Recipe().model_dump(mode="json")))
    lines = [["key", "here", "default"]]
    for key, value in flat(run.recipe.model_dump(mode="json", exclude_defaults=True)):
        if not key.startswith(TEXTS):
            lines.append([key, shown(value), shown(defaults[key]) if key in defaults else "-"])
    html = rendered(
        "recipe.html",
        lines=lines,
        versions=_versions([run]),
        seeds=[["run", "seed", "evaluation"], [run.label, str(run.recipe.seed), _sampling(run)]],
        commands=commands(run),
        again=again(run),
        diff=None,
    )
    return Panel(
        "recipe",
        TITLE,
        "What differs from the defaults, including lengths that were worked out, and what repeats the run.",
        html,
    )


def recipes_panel(runs: list[Recorded]) -> Panel:
    said = [(run.label, command) for run in runs for command in commands(run)[:1]]
    one = len({command for _, command in said}) == 1
    html = rendered(
        "recipe.html",
        lines=None,
        versions=once(_versions(runs)),
        seeds=[["run", "seed", "evaluation"], *([run.label, str(run.recipe.seed), _sampling(run)] for run in runs)],
        commands=[said[0][1]] if one else [f"{label}: {command}" for label, command in said],
        again="",
        diff=differing(runs),
    )
    return Panel("recipe", "Recipes", "The keys in which the runs differ; every other key is the same.", html)


def differing(runs: list[Recorded]) -> list[list[str]]:
    """Header and rows: each key in which the recipes differ, with its value in each run."""
    trees = [dict(flat(run.recipe.model_dump(mode="json"))) for run in runs]
    lines = [["key", *(run.label for run in runs)]]
    for key in sorted({key for tree in trees for key in tree}):
        values = [shown(tree[key]) if key in tree else "-" for tree in trees]
        if len(set(values)) > 1 and key not in NAMES and not key.startswith(TEXTS):
            lines.append([key, *values])
    return lines


def commands(run: Recorded) -> list[str]:
    """How each start was commanded, oldest first."""
    return [shown(str(start["command"])) for start in run.starts if start.get("command")]


def again(run: Recorded) -> str:
    """The command that makes the same run in another place, from every key that was resolved."""
    job = "evaluate" if run.status.get("program") == "evaluate" else "train" if run.trains else "refine"
    return f"trd {job} {shlex.quote(str(run.path / 'recipe.yaml'))} run_dir=runs/again"


def _versions(runs: list[Recorded]) -> list[list[str]]:
    starts = [(run.label, run.starts[-1]) for run in runs if run.starts]
    names = list(dict.fromkeys(name for _, start in starts for name in start.get("packages") or {}))
    lines = [["", *(label for label, _ in starts)]]
    for title, name in (("commit", "commit"), ("Python", "python"), ("platform", "platform"), ("host", "host")):
        if any(start.get(name) for _, start in starts):
            lines.append([title, *(shown(str(start.get(name) or "-")) for _, start in starts)])
    if starts:
        lines.append(["GPUs", *(", ".join(start.get("gpus") or []) or "none" for _, start in starts)])
        lines.append(["CPU", *(_cpu(start) for _, start in starts)])
    for name in names:
        lines.append([name, *(str((start.get("packages") or {}).get(name, "-")) for _, start in starts)])
    return lines


def once(lines: list[list[str]]) -> list[list[str]]:
    """The table with one column of values where those of all runs are the same."""
    same = len(lines[0]) > 2 and all(len(set(line[1:])) == 1 for line in lines[1:])
    return [["", "every run"], *(line[:2] for line in lines[1:])] if same else lines


def _cpu(start: dict[str, Any]) -> str:
    cpu = start.get("cpu") or {}
    return f"{cpu.get('model', '-')}, {cpu.get('usable', '?')} cores, {start.get('memory_gib', '?')} GiB"


def _sampling(run: Recorded) -> str:
    e = run.recipe.evaluation
    return f"{e.samples} samples at temperature {e.temperature:g}" if e.path or e.sets else "none"
