"""What a run's evaluations and its cost say, as tables.

scores, sets, what was spent  ->  scores_panel()  ->  evaluations, guards, buckets, problems that moved, cost
"""

from statistics import fmean

from trd_ray.record import guards
from trd_ray.record.generated import KINDS
from trd_ray.record.summary import SECONDS, first_and_last
from trd_ray.report.helped import points
from trd_ray.report.panel import Panel
from trd_ray.report.recorded import Recorded
from trd_ray.report.rendering import rendered
from trd_ray.report.spent import Spent, amount, duration
from trd_ray.score import buckets
from trd_ray.score.stats import Score, percent
from trd_ray.score.stats import table as score_table

Block = tuple[str, list[list[str]], str]  # title, header and rows, what they mean
MOST_MOVED = 8
NOTE = "Percent, in brackets the 95% interval over problems; differences are taken problem by problem."


def scores_panel(run: Recorded, cost: Spent) -> Panel:
    blocks = [
        *_evaluations(run.evaluations),
        *_sets(run),
        *_buckets(run),
        *_moved(run.evaluations),
        *_cost(run, cost),
    ]
    html = rendered("tables.html", blocks=blocks)
    return Panel("scores", "Scores and cost", "Each number with its interval, and what the run cost.", html)


def _evaluations(found: list[Score]) -> list[Block]:
    if not found:
        return []
    last = found[-1]
    about = f"{last.problems} problems, {last.samples} samples each. {NOTE}"
    blocks = [("Evaluation", score_table(first_and_last(found)), about)]
    if len(found) > 2:
        avg, most = f"avg@{last.samples}", f"pass@{last.samples}"
        lines = [["step", avg.capitalize(), most.capitalize(), f"{avg.capitalize()} - base", "mean tokens"]]
        for score in found:
            moved = guards.difference(score)
            cells = [percent(score.scores.get(avg)), percent(score.scores.get(most))]
            lines.append([str(score.step), *cells, points(moved) if moved else "-", f"{score.tokens_mean:.1f}"])
        blocks.append(("Course of the evaluations", lines, NOTE))
    return blocks


def _sets(run: Recorded) -> list[Block]:
    scored = {name: found for name, found in run.sets.items() if found}
    if not scored:
        return []
    lines = [["set", "before", "after", "difference", "guard"]]
    blocks: list[Block] = []
    for name, found in scored.items():
        first, last = found[0], found[-1]
        before, after = (percent(one.scores.get(f"avg@{one.samples}")) for one in (first, last))
        asked = run.recipe.evaluation.sets.get(name)
        lines.append(
            [name, before if first.name == "base" else "-", after if last.name != "base" else "-"]
            + [percent(guards.difference(last), signed=True), guards.verdict(last) if asked and asked.guard else ""]
        )
        about = f"{last.problems} problems, {last.samples} samples each. {NOTE}"
        blocks.append((f"Evaluation set {name}", score_table(first_and_last(found)), about))
    return [("Evaluation sets and guards", lines, f"Avg@k. {NOTE}"), *blocks]


def _buckets(run: Recorded) -> list[Block]:
    base, last = _base_and_last(run.evaluations)
    if base is None or last is None:
        return []
    e = run.recipe.evaluation
    found = buckets.buckets(base, [last], resamples=min(e.bootstrap, 2_000), seed=run.recipe.seed)
    about = (
        "Problems by how often the base solves them. The grouping fixes the base's own column: sampled again, it would "
        "solve some of its first bucket too."
    )
    return [("Difficulty buckets", buckets.table(found), about)]


def _moved(found: list[Score]) -> list[Block]:
    """The problems that the student solves more often than the base, and less often, the largest changes first."""
    base, last = _base_and_last(found)
    if base is None or last is None:
        return []
    changes = sorted(
        ((fmean(last.per_problem[p]) - fmean(base.per_problem[p]), p) for p in base.per_problem),
        key=lambda pair: (-abs(pair[0]), pair[1]),
    )
    more, less = ([pair for pair in changes if sign * pair[0] > 0] for sign in (1, -1))
    lines = [["problem", "base", last.name, "change"]]
    for change, p in [*more[:MOST_MOVED], *less[:MOST_MOVED]]:
        counts = [f"{sum(score.per_problem[p])} of {score.samples}" for score in (base, last)]
        lines.append([p, *counts, f"{100 * change:+.1f}"])
    same = len(changes) - len(more) - len(less)
    about = f"{len(more)} problems are solved more often than before, {len(less)} less often, {same} as often."
    return [("Problem by problem", lines, f"{about} The largest changes of each kind, in points.")]


def _base_and_last(found: list[Score]) -> tuple[Score | None, Score | None]:
    base = next((score for score in found if score.name == "base"), None)
    last = found[-1] if found and found[-1] is not base else None
    alike = base and last and base.per_problem.keys() == last.per_problem.keys()
    return (base, last) if alike else (None, None)


def of_gpus(cost: Spent) -> list[list[str]]:
    lines = [[f"GPU-hours ({cost.gpus:g} GPUs reserved)", amount(cost.gpu_hours) if cost.gpus else "0"]]
    return lines + ([] if cost.money is None else [[f"money at {cost.price:g} a GPU-hour", f"{cost.money:,.2f}"]])


def _cost(run: Recorded, cost: Spent) -> list[Block]:
    trained = run.total("trained_rows") or 0
    lines = [["", "whole run", "for a row that trained"]]
    for kind, tokens in cost.tokens.items():
        lines.append([f"tokens of {KINDS[kind]}", f"{tokens:,}", f"{tokens / trained:,.0f}" if trained else "-"])
    if cost.trained_tokens:
        each = f"{cost.trained_tokens / trained:,.0f}" if trained else "-"
        lines.append(["tokens trained on", f"{cost.trained_tokens:,}", each])
    lines.append(["wall time, starts and evaluations included", duration(cost.seconds), "-"])
    lines += [[*line, "-"] for line in of_gpus(cost)]
    blocks: list[Block] = [("Cost", lines, "Tokens of prompts are not counted. Elastic pools count with their start.")]
    seconds = [["seconds a step", "mean", "longest"]]
    for stage in SECONDS:
        values = [value for value in run.series(f"seconds/{stage}") if value is not None]
        if values:
            seconds.append([stage, f"{fmean(values):.2f}", f"{max(values):.2f}"])
    if len(seconds) > 1:
        blocks.append(("Seconds by stage", seconds, "Stages overlap, so they may add up to more than the step."))
    return blocks
