"""The panels of one run, in the order in which a person asks: did it help, is something wrong, how did it go, why.

    run directory  ->  panels_of_run()  ->  verdict, alarms, curves, ledger, samples, timeline, diagnostics, scores and
                                            cost, recipe

A file that is damaged costs the panel that needs it, which then says so.
"""

from collections.abc import Callable
from typing import Any

from trd_ray.alarms.conditions import TOLD_ELSEWHERE
from trd_ray.diagnostics import whole
from trd_ray.errors import UserError
from trd_ray.record import guards, warnings
from trd_ray.record.raised import alarms_of
from trd_ray.report import samples, thinned
from trd_ray.report.curve_charts import curves
from trd_ray.report.drawn import flow, intervals
from trd_ray.report.helped import helped, ledger_of, moved
from trd_ray.report.html_page import packed
from trd_ray.report.panel import Panel
from trd_ray.report.recipe_shown import recipe_panel
from trd_ray.report.recorded import Recorded
from trd_ray.report.rendering import note, readable, rendered
from trd_ray.report.score_panels import scores_panel
from trd_ray.report.spent import Spent, spent

MEGABYTE = 1_000_000
FIRST_MB, EACH_STEP_MB, MOST_MB = 1.2, 0.0285, 9.7  # of the whole page: below 2 MB at 25 steps, below 10 MB at 300
TRIES = 3  # at samples that fit


def panels_of_run(run: Recorded, price: float | None = None) -> list[Panel]:
    cost = spent(run, price)
    made = [
        attempt("verdict", "Verdict", lambda: verdict_panel(run, cost)),
        attempt("alarms", "Alarms", lambda: alarms_panel(run)),
        attempt("curves", "Curves", lambda: curves_panel([run])),
        attempt("ledger", "Ledger", lambda: ledger_panel([run])),
        attempt("timeline", "Timeline", lambda: timeline_panel(run)),
        attempt("diagnostics", "Diagnostics", lambda: diagnostics_panel(run)),
        attempt("scores", "Scores and cost", lambda: scores_panel(run, cost)),
        attempt("recipe", "Recipe", lambda: recipe_panel(run)),
    ]
    budget = MEGABYTE * min(MOST_MB, FIRST_MB + EACH_STEP_MB * max(1, run.steps)) - sum(map(_size, made))
    samples = attempt("samples", "Samples", lambda: samples_panel(run, int(budget)))
    return made[:4] + ([samples] if samples else []) + made[4:]


def attempt(name: str, title: str, make: Callable[[], Panel | None]) -> Panel:
    """The panel, or one of the same name that says why there is none."""
    try:
        found = make()
    except Exception as e:
        why = " ".join((str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}").split())[:300]
        return Panel(name, title, "", note(f"This part could not be made ({why})."))
    return found or Panel(name, title, "", note("There is nothing to show here."))


def _size(panel: Panel) -> int:
    return len(panel.html) + (0 if panel.data is None else len(packed(panel.data)))


def verdict_panel(run: Recorded, cost: Spent) -> Panel:
    found = helped(run, cost)
    drawn = intervals(moved(run))
    html = rendered("verdict.html", found=found, drawn=drawn, sentences=found.sentences)
    return Panel("verdict", "Verdict", "", html)


def alarms_panel(run: Recorded) -> Panel:
    told = (one for one in alarms_of(run.path, run.recipe) if one["until_step"] or one["name"] not in TOLD_ELSEWHERE)
    alarms = [_alarm(one) for one in told]
    warned: dict[str, str] = {}
    limit = run.recipe.evaluation.max_response_tokens
    for name, scores in {"": run.evaluations, **run.sets}.items():
        where = f"evaluation.sets.{name}" if name else "evaluation.path"
        warned |= warnings.of_score(scores[-1], run.recipe, limit, where) if scores else {}
    warned |= guards.of_guards(run.sets, run.recipe)
    said = [
        {"when": run.step_at(event["when"]), "said": str(event.get("said", ""))}
        for event in run.events
        if event["kind"] == "warning"
    ]
    html = rendered(
        "alarms.html",
        alarms=alarms,
        warned=[text.replace("`", "") for text in warned.values()],
        said=said[-20:],
    )
    return Panel("alarms", "Alarms", "What was wrong, since when, and what to set.", html)


def _alarm(found: dict[str, Any]) -> dict[str, Any]:
    texts = {name: str(found.get(name) or "").replace("`", "") for name in ("name", "sentence", "means", "do")}
    return texts | {"since": found.get("since_step"), "until": found.get("until_step")}


def curves_panel(runs: list[Recorded]) -> Panel:
    data = curves(runs)
    shown = "marked with evaluations, checkpoints and restarts" if len(runs) == 1 else "runs by colour, metrics by dash"
    explains = (
        f"Every step from left to right, {shown}. Drag to zoom, double-click to see all, arrow keys to read values."
    )
    every = max((one["every"] for one in data["runs"]), default=1) if data else 1
    if every > 1:
        explains += f" One of {every} steps is drawn."
    if data is None:
        return Panel("curves", "Curves", "", note("No step is finished, so there is no curve."))
    return Panel("curves", "Curves", explains, data=readable(data))


def ledger_panel(runs: list[Recorded]) -> Panel:
    flows = [{"label": run.label, "cells": cells, "flow": flow(cells)} for run in runs for cells in [ledger_of(run)]]
    title, explains = "Ledger", "What refinement did to the verdicts: y_o, the raw attempt, and y_r, its refinement."
    if not any(one["flow"] for one in flows):
        return Panel("ledger", title, "", note("Nothing was refined and judged, so there is no ledger."))
    steps = [
        {"label": run.label, "steps": run.series("step")}
        | {name: run.series(f"ledger/{name}") for name in flows[0]["cells"]}
        for run in runs
    ]
    html = rendered("ledger.html", flows=[one for one in flows if one["flow"]], several=len(runs) > 1)
    return Panel("ledger", title, explains, html, readable(steps))


def timeline_panel(run: Recorded) -> Panel:
    found = thinned.lanes_of(run.path / "timeline.json")
    if found is None:
        return Panel("timeline", "Timeline", "", note("There is no timeline.json: a run writes one as it goes on."))
    explains = (
        "Who worked when: full bars are work, thin lines are waiting. "
        f"Gaps below {found['resolution_ms']:g} ms are closed; all of it is in timeline.json, for ui.perfetto.dev."
    )
    return Panel("timeline", "Timeline", explains, data=readable(found))


def diagnostics_panel(run: Recorded) -> Panel | None:
    return drawn_diagnostics([(run.label, diagnosed(run))])


def diagnosed(run: Recorded) -> dict[str, Any]:
    """What `diagnostics.whole.of_run` says; nothing of a directory without rows."""
    try:
        return whole.of_run(run.path, look=run.look)
    except UserError:
        run.look()  # which may have raised it
        return {}


def drawn_diagnostics(found: list[tuple[str, dict[str, Any]]]) -> Panel:
    """The panel of what `diagnostics.whole.of_run` says of each run, which page/diagnosed.js draws."""
    kept = [
        {"label": label}
        | {key: value for key, value in tree.items() if key != "buckets"}
        | {"buckets": {"rows": (tree.get("buckets") or {}).get("rows") or []}}
        for label, tree in found
    ]
    explains = (
        "Where the training signal sits, and whether refinement stays near the student: as trd analyse prints it."
    )
    return Panel("diagnostics", "Diagnostics", explains, data=readable(kept))


def samples_panel(run: Recorded, budget: int) -> Panel | None:
    """The sample browser, in at most so many bytes of the page."""
    asked = budget
    for _ in range(TRIES):
        panel = samples.panel(run.directory, asked, run.look)
        if panel is None or _size(panel) <= budget:
            return panel
        asked = int(asked * budget / _size(panel) * 0.9)
    return None
