"""What an evaluation says at its end: JSON for each benchmark, a Markdown report over all, and tables in the terminal.

Exam, Samples          ->  result(), write()   ->  evaluation/<benchmark>.json
all results on disk    ->  write_markdown()    ->  evaluation.md
results                ->  show()              ->  the terminal
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trd_ray.config import Recipe
from trd_ray.evaluate.plan import Base, EvaluationPlan, Exam
from trd_ray.evaluate.samples import Samples
from trd_ray.files import write_atomically
from trd_ray.record import markdown
from trd_ray.record.directory import differences
from trd_ray.report.evaluation_tables import MEAN_NOTE, SUMMARY_NOTE, Result, read, summary, tables, warned
from trd_ray.report.evaluation_tables import guard as guard
from trd_ray.report.evaluation_tables import headline as headline
from trd_ray.score import buckets, stats
from trd_ray.score.stats import Score


def result(plan: EvaluationPlan, exam: Exam, samples: Samples, name: str) -> Result:
    """The score of a benchmark and all that explains it, as evaluation/<benchmark>.json holds it."""
    e = exam.evaluation
    seed = plan.recipe.seed
    score = stats.score(
        samples.answers(exam.keys), name=name, step=plan.target.step, version=0, resamples=e.bootstrap, seed=seed
    )
    base = _named_apart(exam.base.score, name) if exam.base else None
    against = base or score
    grouped = buckets.buckets(against, [score] if base else [], resamples=e.bootstrap, seed=seed)
    if base:
        score = stats.compare(score, base, resamples=e.bootstrap, seed=seed)
    settings = {k: v for k, v in samples.settings.items() if k != "model"}
    return stats.to_json(score) | {
        "benchmark": {"name": exam.name} | exam.about,
        "thinking": exam.thinking,
        "model": samples.settings["model"]["path"],
        "settings": settings,
        "base": stats.to_json(base) if base else None,
        "base_differs": _differs(exam.base, settings) if exam.base else [],
        "buckets": buckets.to_json(grouped),
    }


def _named_apart(base: Score, name: str) -> Score:
    """The base, renamed if it has the same name as the checkpoint."""
    return replace(base, name=f"{name} (base)") if base.name == name else base


def _differs(base: Base, settings: dict[str, Any]) -> list[str]:
    if base.alike:
        return []
    if base.settings is None:
        return ["how the base was sampled is not recorded with its score"]
    return [f"the base was evaluated with {d}" for d in differences(base.settings, settings, {"seed"})]


def write(directory: Path, found: Result) -> None:
    place = directory / "evaluation" / f"{found['benchmark']['name']}.json"
    write_atomically(place, json.dumps(found, indent=2))


def write_markdown(directory: Path, recipe: Recipe) -> Path:
    """Write evaluation.md, over all results that the directory holds."""
    results = read(directory)
    place = directory / "evaluation.md"
    parts = [f"# {markdown.inline(recipe.name)}", f"Model {markdown.code(results[0]['model'])}."]
    parts += [f"Warning: {text}" for found in results for text in warned(found, recipe)]
    means = f" {MEAN_NOTE}" if len(results) > 1 else ""
    parts += ["## Summary", _markdown(summary(results, recipe)), f"{SUMMARY_NOTE}{means}"]
    for found in results:
        for i, (title, lines, note) in enumerate(tables(found)):
            parts += [f"{'###' if i else '##'} {markdown.inline(title)}", _markdown(lines), markdown.inline(note)]
            if not i:
                parts.append(_asked(found))
    parts.append(
        "Every number, and Pass@k for every k, is in `evaluation/<benchmark>.json`; every sample with its text and "
        "verdict in `evaluation/<benchmark>.parquet`."
    )
    write_atomically(place, "\n\n".join(parts) + "\n")
    return place


def _asked(found: Result) -> str:
    settings = json.dumps(found["settings"] | {"source": found["benchmark"]["source"]}, ensure_ascii=False)
    return f"Asked with {markdown.code(settings)}; {markdown.inline(found['thinking'])}."


def _markdown(lines: list[list[str]]) -> str:
    return markdown.table([[markdown.inline(cell) for cell in line] for line in lines])


def show(console: Console, results: list[Result], recipe: Recipe) -> None:
    for found in results:
        for text in warned(found, recipe):
            console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)
        for title, lines, note in tables(found):
            if title == found["benchmark"]["name"] or found["base"]:
                _draw(console, title, lines, note)
    if len(results) > 1:
        _draw(console, "all benchmarks", summary(results, recipe), f"{SUMMARY_NOTE} {MEAN_NOTE}")


def _draw(console: Console, title: str, lines: list[list[str]], note: str) -> None:
    header, *body = lines
    drawn = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for i, cell in enumerate(header):
        drawn.add_column(Text(cell), justify="right" if i else "left", no_wrap=not i)
    for line in body:
        drawn.add_row(*map(Text, line))
    console.print(drawn, Text(f"{note}\n", style="dim"))
