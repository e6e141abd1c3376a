"""The panels of several runs in one page: who gained most, curves over each other, differences, recipes apart.

    runs  ->  panels_of_runs()  ->  verdict, curves, ledger, diagnostics, scores, recipes

Two runs are compared problem by problem where both were scored on the same problems at their ends. The first run is the
one that the others are compared with. Alarms, samples and timelines are in the page of each run.
"""

from typing import Any

from trd_ray.record.guards import difference
from trd_ray.report.drawn import intervals
from trd_ray.report.helped import HEADLINES, kind_of, points
from trd_ray.report.panel import Panel
from trd_ray.report.panels_of_run import attempt, curves_panel, diagnosed, drawn_diagnostics, ledger_panel
from trd_ray.report.recipe_shown import recipes_panel
from trd_ray.report.recorded import ENDED, Recorded
from trd_ray.report.rendering import rendered
from trd_ray.report.spent import Spent, amount, duration, spent
from trd_ray.score.stats import Score, compare, percent
from trd_ray.score.stats import table as score_table

RESAMPLES = 10_000
NOTE = "Percent, in brackets the 95% interval over problems; differences are taken problem by problem."


def panels_of_runs(runs: list[Recorded], price: float | None = None) -> list[Panel]:
    costs = [spent(run, price) for run in runs]
    return [
        attempt("verdict", "Verdict", lambda: _verdict(runs, costs)),
        attempt("curves", "Curves", lambda: curves_panel(runs)),
        attempt("ledger", "Ledger", lambda: ledger_panel(runs)),
        attempt("diagnostics", "Diagnostics", lambda: _diagnostics(runs)),
        attempt("scores", "Scores and cost", lambda: _scores(runs, costs)),
        attempt("recipe", "Recipes", lambda: recipes_panel(runs)),
    ]


def labels_of(names: list[str]) -> list[str]:
    """The names with a number where two are alike."""
    return [name if names.count(name) == 1 else f"{name} ({1 + names[:i].count(name)})" for i, name in enumerate(names)]


def last_score(run: Recorded) -> Score | None:
    """The newest score of a trained student."""
    return next((score for score in reversed(run.evaluations) if score.name != "base"), None)


def against_first(runs: list[Recorded]) -> list[tuple[Recorded, Score]]:
    """Each later run's last score, compared with that of the first where their problems are the same."""
    first = last_score(runs[0])
    found = []
    for run in runs[1:]:
        score = last_score(run)
        if first and score and first.per_problem.keys() == score.per_problem.keys():
            found.append((run, compare(score, first, resamples=RESAMPLES, seed=run.recipe.seed)))
    return found


def _verdict(runs: list[Recorded], costs: list[Spent]) -> Panel:
    lines = []
    sentences = []
    for run in runs:
        score = next((one for one in reversed(run.evaluations) if one.paired_with), None)
        e = difference(score) if score else None
        state = (
            "" if run.state in ("done", "ended") else f" It is {ENDED.get(run.state, run.state)}, at step {run.steps}."
        )
        if score is None or e is None:
            sentences.append(f"{run.label}: {HEADLINES['unknown'].lower()}.{state}")
            continue
        kind = kind_of(e)
        lines.append(
            {"name": run.label, "about": f"against its base, {score.problems} problems", "estimate": e, "kind": kind}
        )
        sentences.append(
            f"{run.label}: {HEADLINES[kind].lower()}, by {points(e)} points of Avg@{score.samples}.{state}"
        )
    for run, score in against_first(runs):
        e = difference(score)
        if e is not None:
            kind = kind_of(e)
            lines.append({"name": run.label, "about": f"against {runs[0].label}", "estimate": e, "kind": kind})
            word = {"better": "above", "worse": "below", "unclear": "not clear of"}[kind]
            sentences.append(f"{run.label} is {word} {runs[0].label}, by {points(e)} points of Avg@{score.samples}.")
    html = rendered("runs.html", sentences=sentences, drawn=intervals(lines))
    return Panel("verdict", "Verdict", "", html)


def _diagnostics(runs: list[Recorded]) -> Panel:
    return drawn_diagnostics([(run.label, diagnosed(run)) for run in runs])


def _scores(runs: list[Recorded], costs: list[Spent]) -> Panel:
    blocks: list[tuple[str, list[list[str]], str]] = []
    scored = [(run, score) for run in runs if (score := last_score(run))]
    if scored:
        header = ["", *(f"{run.label} (step {score.step})" for run, score in scored)]
        lines = [line[: len(header)] for line in score_table([score for _, score in scored])]
        blocks.append(("At the end", [header, *lines[1:]], NOTE))
    for run, score in against_first(runs):
        assert score.paired_with
        lines = [["", f"{run.label} - {runs[0].label}"]]
        lines += [[m.capitalize(), percent(e, signed=True)] for m, e in _shown(score).items()]
        blocks.append(
            (f"{run.label} against {runs[0].label}", lines, f"{score.problems} problems that both answered. {NOTE}")
        )
    lines = [["", *(run.label for run in runs)]]
    rows: dict[str, Any] = {
        "wall time": [duration(cost.seconds) for cost in costs],
        "GPU-hours": [amount(cost.gpu_hours) if cost.gpus else "0" for cost in costs],
        "tokens generated": [f"{sum(cost.tokens.values()):,}" for cost in costs],
        "tokens trained on": [f"{cost.trained_tokens:,}" for cost in costs],
        "steps": [str(run.steps) for run in runs],
        "seconds a step": [f"{(run.total('seconds/step') or 0) / max(1, run.steps):.2f}" for run in runs],
    }
    if any(cost.money is not None for cost in costs):
        rows["money"] = [f"{cost.money or 0:,.2f}" for cost in costs]
    blocks.append(
        ("Cost", [*lines, *([name, *cells] for name, cells in rows.items())], "Tokens of prompts are not counted.")
    )
    html = rendered("tables.html", blocks=blocks)
    return Panel("scores", "Scores and cost", "Each number with its interval, and what each run cost.", html)


def _shown(score: Score) -> dict[str, Any]:
    """Avg@k and Pass@k for powers of two, as the tables show them."""
    assert score.paired_with
    wanted = {f"avg@{score.samples}", *(f"pass@{2**i}" for i in range(1, score.samples.bit_length()))}
    return {measure: e for measure, e in score.paired_with.differences.items() if measure in wanted}
