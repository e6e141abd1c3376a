"""From the run directory of a finished cell to its table.

    run directory of a cell  ->  taken()  ->  CellTable
    ComparisonPlan           ->  of_plan() -> the tables of all finished cells, also of those that were taken elsewhere

- Generated: tokens of attempts and refinements, all candidates. Prefill: the prompts of those, and what was scored.
- Seconds are those of the steps, in which no evaluation counts.
- An answer is what the verifier found in the response. The majority is the commonest answer; among equally common ones
  the share that is right counts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from trd_ray.compare.cell_tables import CellTable, Graded, Point, digest, read_table, recipe_of
from trd_ray.compare.grid import Cell
from trd_ray.compare.plan import ComparisonPlan
from trd_ray.config import stored
from trd_ray.files import write_atomically
from trd_ray.record.directory import RunDirectory
from trd_ray.record.generated import KINDS, generated
from trd_ray.record.ledger import facts_of_run
from trd_ray.report.comparison_tables import STAGES
from trd_ray.rows import RowFiles
from trd_ray.score.stats import Score

TRAINED_ON = {  # name in comparison.json -> metric of a step
    "raw_passed": "y_o/passed",
    "refined_passed": "y_r/passed",
    "raw_tokens": "y_o/tokens_mean",
    "refined_tokens": "y_r/tokens_mean",
    "grad_norm": "grad_norm",
}


def of_plan(plan: ComparisonPlan) -> list[CellTable]:
    """The tables of all finished cells; those of runs here are written where that is due."""
    return [plan.taken_elsewhere(cell) or kept(plan, cell) for cell in plan.cells() if plan.is_done(cell)]


def kept(plan: ComparisonPlan, cell: Cell) -> CellTable:
    """The table of a cell that was finished here. It is written unless it is there, newer than the run and of it."""
    place = plan.table_of(cell)
    run = RunDirectory(plan.path / cell.name)
    newest = max((file.stat().st_mtime for file in (run.path / "evaluation").rglob("*.json")), default=0.0)
    if place.is_file() and place.stat().st_mtime >= newest:
        table, score = read_table(place), plan.score(cell)
        scored = [sum(score.per_problem[problem]) for problem in sorted(score.per_problem)] if score else []
        if table.last.graded[""].correct == scored and (table.recipe or cell.kind == "base"):
            return table
    table = taken(cell, run)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, table.text())
    return read_table(place)


def taken(cell: Cell, run: RunDirectory) -> CellTable:
    """The table of a finished run."""
    metrics = run.read_metrics()
    facts = facts_of_run(run.read_rows())
    by_step: dict[int, list[dict]] = defaultdict(list)
    for fact in facts:
        by_step[fact["step"]].append(fact)
    made = {step: generated(of_step) for step, of_step in by_step.items()}
    prompts = _prompt_tokens(run)
    points = []
    for step, scores in _evaluations(run).items():
        tokens = sum(n.get("sampled", 0) + n.get("refined", 0) for at, n in made.items() if at <= step)
        prefill = sum(n.get("scored", 0) for at, n in made.items() if at <= step)
        prefill += sum(n for at, n in prompts.items() if at <= step)
        seconds = sum(line.get("seconds/step") or 0.0 for line in metrics if line["step"] <= step)
        graded = {of: _graded(score, _answers(run, score, of)) for of, score in scores.items()}
        points.append(Point(step, tokens, prefill, round(seconds, 3), graded))
    if cell.kind == "base":
        return CellTable("base", cell.mode, "", cell.seed, cell.base, None, points=points[:1])
    points = points if cell.kind == "final" else points[-1:]
    cost = _cost(metrics, generated(facts), points[-1].prefill)
    recipe = stored(run.path / "recipe.yaml")
    return CellTable(
        cell.kind, cell.mode, cell.method, cell.seed, cell.base, recipe.learner.lr,
        cost, _trained_on(metrics), points, recipe_of(recipe),
    )  # fmt: skip


def _evaluations(run: RunDirectory) -> dict[int, dict[str, Score]]:
    """Steps -> the scores of the sets, in order; where evaluation.path was not scored, the step is left out."""
    found: dict[int, dict[str, Score]] = defaultdict(dict)
    for of in ["", *run.evaluated_sets()]:
        for score in run.read_evaluations(of):
            found[score.step][of] = score
    return {step: scores for step, scores in sorted(found.items()) if "" in scores}


def _answers(run: RunDirectory, score: Score, of: str) -> dict[str, list[str | None]] | None:
    """Problem -> the answers found in its responses; None for a run that kept no rows of its evaluation."""
    place = run.path / "evaluation" / of / f"{score.name}.parquet"
    if not place.is_file():
        return None
    found: dict[str, list[str | None]] = defaultdict(list)
    for table in RowFiles([place]).tables(["problem_id", "y_o.extracted"]):
        for problem, answer in zip(table["problem_id"].to_pylist(), table["y_o.extracted"].to_pylist(), strict=True):
            found[problem].append(answer or None)
    return found


def _graded(score: Score, answers: dict[str, list[str | None]] | None) -> Graded:
    problems = sorted(score.per_problem)
    spread: dict[str, Any] = {}
    if answers is not None:
        voted = [spread_of(answers[p], score.per_problem[p]) for p in problems]
        spread = {name: [one[name] for one in voted] for name in ("majority", "unique", "entropy")}
    return Graded(
        score.samples,
        digest(problems),
        [sum(score.per_problem[p]) for p in problems],
        tokens_mean=round(score.tokens_mean, 2),
        truncated=round(score.truncated.value, 4),
        answered=round(score.answered.value, 4),
        **spread,
    )


def spread_of(answers: Sequence[str | None], passed: Iterable[bool]) -> dict[str, float]:
    """Of the answers to one problem: whether the majority is right, how many differ, and their entropy in nats."""
    counts = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, ok in zip(answers, passed, strict=True) if ok}
    most = max(counts.values(), default=0)
    commonest = [answer for answer, n in counts.items() if n == most]
    n = sum(counts.values())
    return {
        "majority": round(fmean(answer in right for answer in commonest), 4) if commonest else 0.0,
        "unique": len(counts),
        "entropy": round(max(0.0, -sum(c / n * math.log(c / n) for c in counts.values())), 4),
    }


def _prompt_tokens(run: RunDirectory) -> dict[int, int]:
    """Step -> tokens of the prompts of attempts and refinements."""
    found: dict[int, int] = defaultdict(int)
    for table in run.read_rows().tables(["step", "student_prompt_ids", "refine_prompt_ids"]):
        for name in ("student_prompt_ids", "refine_prompt_ids"):
            lengths = pc.fill_null(pc.list_value_length(table[name]), 0).to_pylist()  # pyright: ignore
            for step, n in zip(table["step"].to_pylist(), lengths, strict=True):
                found[step] += n
    return found


def _cost(metrics: list[dict], tokens: dict[str, int], prefill: int) -> dict[str, Any]:
    """Tokens made and trained on, and seconds of the steps by stage. Stages overlap."""
    trained = sum(m.get("trained_tokens") or 0 for m in metrics)
    return {
        "tokens": {kind: tokens.get(kind, 0) for kind in KINDS} | {"trained": trained},
        "prefill": prefill,
        "seconds": {s: round(sum(m.get(f"seconds/{s}") or 0 for m in metrics), 3) for s in ["step", *STAGES]},
    }


def _trained_on(metrics: list[dict]) -> dict[str, Any]:
    """Means over steps; the KL has two means, over the first and the last quarter of the steps."""
    out = {name: _mean(metrics, key) for name, key in TRAINED_ON.items()}
    quarter = max(1, len(metrics) // 4)
    return out | {"kl_first": _mean(metrics[:quarter], "kl/mean"), "kl_last": _mean(metrics[-quarter:], "kl/mean")}


def _mean(metrics: list[dict], name: str) -> float | None:
    values = [m[name] for m in metrics if m.get(name) is not None]
    return round(fmean(values), 6) if values else None
