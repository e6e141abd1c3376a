"""The panels of what is no run: an evaluation, and a comparison of methods.

    directory of trd evaluate  ->  panels_of_evaluation()  ->  verdict, scores, samples, recipe
    directory of trd compare   ->  panels_of_comparison()  ->  verdict, curves, scores over cost, scores, recipes

The tables are those of evaluation.md and comparison.md. The curves of a comparison are those of its runs; the scores
over cost are means over the runs of a method.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from trd_ray.record.directory import RunDirectory
from trd_ray.record.guards import difference
from trd_ray.report import comparison_tables, evaluation_tables
from trd_ray.report.curve_svg import AXES, SCORES, line_of
from trd_ray.report.drawn import intervals
from trd_ray.report.evaluation_tables import MEAN_NOTE, SUMMARY_NOTE, Result
from trd_ray.report.helped import HEADLINES, kind_of, points
from trd_ray.report.panel import Panel
from trd_ray.report.panels_of_run import FIRST_MB, MEGABYTE, attempt, curves_panel, samples_panel
from trd_ray.report.recipe_shown import recipe_panel, recipes_panel
from trd_ray.report.recorded import Recorded, json_of
from trd_ray.report.rendering import readable, rendered
from trd_ray.report.score_panels import of_gpus
from trd_ray.report.spent import Spent, duration, spent
from trd_ray.score.stats import Estimate, from_json, percent

MOST_CURVES = 12  # runs of a comparison whose curves can still be told apart


def panels_of_evaluation(run: Recorded, price: float | None = None) -> list[Panel]:
    results = evaluation_tables.read(run.path)
    return [
        attempt("verdict", "Verdict", lambda: _of_evaluation(run, results)),
        attempt("scores", "Scores and cost", lambda: _evaluated(run, results, spent(run, price))),
        attempt("samples", "Samples", lambda: samples_panel(run, int(MEGABYTE * FIRST_MB))),
        attempt("recipe", "Recipe", lambda: recipe_panel(run)),
    ]


def _of_evaluation(run: Recorded, results: list[Result]) -> Panel:
    sentences, lines = [], []
    for found in results:
        score = from_json(found)
        name, avg = found["benchmark"]["name"], f"avg@{score.samples}"
        e = difference(score)
        moved = ""
        if e is not None and score.paired_with:
            kind = kind_of(e)
            lines.append({"name": name, "about": f"against {score.paired_with.name}", "estimate": e, "kind": kind})
            moved = f"; against {score.paired_with.name} {points(e)} points"
        sentences.append(f"{name}: {score.name} has {avg.capitalize()} {percent(score.scores[avg])} percent{moved}.")
    sentences += [
        f"Warning: {text.replace('`', '')}" for found in results for text in evaluation_tables.warned(found, run.recipe)
    ]
    sentences = sentences or ["No benchmark is finished yet: the same command goes on."]
    html = rendered("runs.html", sentences=sentences, drawn=intervals(lines))
    return Panel("verdict", "Verdict", "", html)


def _evaluated(run: Recorded, results: list[Result], cost: Spent) -> Panel | None:
    if not results:
        return None
    notes = f"{SUMMARY_NOTE}{f' {MEAN_NOTE}' if len(results) > 1 else ''}"
    blocks = [("Summary", evaluation_tables.summary(results, run.recipe), notes)]
    blocks += [block for found in results for block in evaluation_tables.tables(found)]
    blocks.append(("Cost", _cost(results, cost), "All starts together. The tokens are those of this model's answers."))
    html = rendered("tables.html", blocks=blocks)
    about = "Each benchmark with its intervals, the base beside it where there is one, and what it cost."
    return Panel("scores", "Scores and cost", about, html)


def _cost(results: list[Result], cost: Spent) -> list[list[str]]:
    scores = [from_json(found) for found in results]
    tokens = sum(score.tokens_mean * score.samples * score.problems for score in scores)
    lines = [["", ""], ["tokens generated", f"{tokens:,.0f}"], ["wall time", duration(cost.seconds)]]
    return lines + of_gpus(cost)


def panels_of_comparison(path: Path) -> list[Panel]:
    found = json_of(path / "comparison.json") or {}
    runs = cells_of(path)
    some = of_every_method(runs, MOST_CURVES)
    made = [
        attempt("verdict", "Verdict", lambda: _of_comparison(found)),
        attempt("scores", "Scores and cost", lambda: _compared(found)),
    ]
    if found.get("curves"):
        made.insert(1, attempt("spending", "At what cost", lambda: _spending(found)))
    if some:
        made.insert(1, attempt("curves", "Curves", lambda: _curves(runs, some)))
        made.append(attempt("recipe", "Recipes", lambda: recipes_panel(some)))
    if (path / "comparison.yaml").is_file():
        made.append(attempt("comparison", "Comparison", lambda: _file(path / "comparison.yaml")))
    return made


def _file(place: Path) -> Panel:
    html = rendered("text.html", text=place.read_text(errors="replace"))
    return Panel("comparison", "Comparison", "What was compared: trd compare goes on with this file.", html)


def cells_of(path: Path) -> list[Recorded]:
    """The runs that trained in a comparison, each called by its place there, without those that tuned."""
    places = sorted(place.parent for place in path.glob("*/*/*/recipe.yaml"))
    places = [place for place in places if (place / "metrics.jsonl").is_file()]
    return [
        Recorded(RunDirectory.open(place), str(place.relative_to(path)))
        for place in places
        if "tuning" not in place.relative_to(path).parts
    ]


def of_every_method(runs: list[Recorded], most: int) -> list[Recorded]:
    """At most so many of the cells: the first seed of every method, then the second of each, in the order of `runs`."""
    before: Counter[Path] = Counter()
    turns = []
    for at, run in enumerate(runs):
        method = run.path.parent
        turns.append((before[method], at))
        before[method] += 1
    return [runs[at] for at in sorted(at for _, at in sorted(turns)[:most])]


def _curves(runs: list[Recorded], some: list[Recorded]) -> Panel:
    panel = curves_panel(some)
    left_out = f" {len(some)} of {len(runs)} runs, seed by seed of every method." if len(runs) > len(some) else ""
    return Panel(panel.name, panel.title, panel.explains + left_out, panel.html, panel.data)


def _spending(found: dict[str, Any]) -> Panel:
    charts = [
        {"title": f"{mode}: {title} over {label}", "axis": label}
        | {"lines": [{"method": one["method"], "points": line_of(one, axis, score)} for one in lines]}
        for mode in dict.fromkeys(one["mode"] for one in found["curves"])
        for score, title in SCORES.items()
        for axis, label in AXES.items()
        if (lines := [c for c in found["curves"] if c["mode"] == mode and line_of(c, axis, score)])
    ]
    explains = "Held-out scores against what the runs had spent, the base first; bars are one standard error over runs."
    return Panel("spending", "At what cost", explains, data=readable({"charts": charts}))


def _of_comparison(found: dict[str, Any]) -> Panel:
    lines, sentences = [], []
    against = found.get("against")
    for mode, methods in (found.get("modes") or {}).items():
        for method, line in methods.items():
            avg = f"avg@{line['samples']}"
            for key, other in (("minus_base", "the base"), ("minus_against", against)):
                tree = (line.get(key) or {}).get(avg)
                if tree is None or other is None:
                    continue
                e = Estimate(tree["value"], tree["low"], tree["high"])
                kind = kind_of(e)
                lines.append({"name": f"{mode} {method}", "about": f"against {other}", "estimate": e, "kind": kind})
                if key == "minus_base":
                    sentences.append(
                        f"{mode} {method}: {HEADLINES[kind].lower()}, by {points(e)} points of {avg.capitalize()}."
                    )
    sentences += [f"{name} failed: {why}" for name, why in (found.get("failures") or {}).items()]
    if left := comparison_tables.unfinished(found.get("unfinished") or []):
        sentences.append(left)
    sentences = sentences or ["No cell is finished yet: the same command goes on."]
    html = rendered("runs.html", sentences=sentences, drawn=intervals(lines))
    return Panel("verdict", "Verdict", "", html)


def _compared(found: dict[str, Any]) -> Panel | None:
    blocks = comparison_tables.tables(found) if found.get("modes") else []
    if not blocks:
        return None
    html = rendered("tables.html", blocks=blocks)
    return Panel("scores", "Scores and cost", "What every method reached, what it cost and what it trained on.", html)
