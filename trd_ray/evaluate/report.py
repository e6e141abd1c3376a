"""What an evaluation says at its end: JSON for each benchmark, a Markdown report over all, and tables in the terminal.

Exam, Samples          ->  result(), write()   ->  evaluation/<benchmark>.json
all results on disk    ->  write_markdown()    ->  evaluation.md
results                ->  show()              ->  the terminal
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trd_ray.config import Recipe
from trd_ray.evaluate.plan import Base, EvaluationPlan, Exam
from trd_ray.evaluate.samples import Samples
from trd_ray.files import write_atomically
from trd_ray.record import guards, markdown, warnings
from trd_ray.record.directory import differences
from trd_ray.score import buckets, stats
from trd_ray.score.stats import FEW, LEVEL, RARE, Score, from_json, percent

Result = dict[str, Any]

NOTE = (
    f"Percent, with {LEVEL:.0%} intervals: bootstrap over problems (Jeffreys' where they are fewer than {FEW}, or "
    f"fewer than {RARE} differ from the rest), of problems ever solved Wilson's."
)
PAIRED_NOTE = "Differences are paired by problem."
SUMMARY_NOTE = (
    f"Problems x samples; percent, with {LEVEL:.0%} intervals over problems. Cut: samples that ended at the "
    "length limit; answered: samples with an answer."
)
MEAN_NOTE = "The mean is that of the benchmarks, whatever their size."
BUCKETS_NOTE = (
    "Problems by how often {0} solves them; Pass@n begins with the number of problems that any sample solves, and its "
    "interval is Wilson's. {0}'s own column is fixed by the grouping: sampled again, it would solve some of its first "
    "bucket too."
)


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


def read(directory: Path) -> list[Result]:
    """The results of all benchmarks that are finished in this directory, in the order of their names."""
    return [json.loads(place.read_text()) for place in sorted((directory / "evaluation").glob("*.json"))]


def warned(found: Result, recipe: Recipe) -> list[str]:
    """The warnings about what makes the numbers of this benchmark worth little."""
    limit = found["settings"]["evaluation"]["max_response_tokens"]
    score = from_json(found)
    told = warnings.of_score(score, recipe, limit, where=found["benchmark"]["name"])
    if guard(found) == "lost":
        told |= {"guard": guards.of_loss(found["benchmark"]["set"], score)}
    return list(told.values())


def guard(found: Result) -> str:
    """What became of a guard: kept, lost or not compared; "" for what is none."""
    return guards.verdict(from_json(found)) if found["benchmark"].get("guard") else ""


def scores_of(found: Result) -> list[Score]:
    """The base, if there is one, and the checkpoint."""
    base = [from_json(found["base"])] if found["base"] else []
    return [*base, from_json(found)]


def headline(found: Result) -> str:
    """The score of one benchmark in one line."""
    s = from_json(found)
    measures = (f"avg@{s.samples}", f"pass@{s.samples}")
    shown = [f"{measure.capitalize()} {percent(s.scores[measure])}" for measure in measures]
    shown += [f"guard {guard(found)}"] if guard(found) else []
    return f"{found['benchmark']['name']}: {', '.join(shown)}"


def summary(results: list[Result], recipe: Recipe) -> list[list[str]]:
    """Header and rows of text: one row for each benchmark, then their unweighted mean."""
    scores = [from_json(found) for found in results]
    compared = any(s.paired_with for s in scores)
    guarded = any(guard(found) for found in results)
    header = ["benchmark", "size", "Avg@n", "Pass@n", "cut", "answered", "p50 tokens"]
    lines = [header + (["Avg@n - base"] if compared else []) + (["guard"] if guarded else [])]
    for found, s in zip(results, scores, strict=True):
        avg, most = f"avg@{s.samples}", f"pass@{s.samples}"
        cells = [found["benchmark"]["name"], f"{s.problems} x {s.samples}", percent(s.scores[avg])]
        cells += [percent(s.scores[most]), f"{100 * s.truncated.value:.1f}", f"{100 * s.answered.value:.1f}"]
        cells.append(f"{s.tokens['p50']:.0f}")
        if compared:
            cells.append(percent(s.paired_with.differences[avg], signed=True) if s.paired_with else "-")
        lines.append(cells + ([guard(found)] if guarded else []))
    if len(scores) > 1:
        mean = _mean(results, recipe, all(s.paired_with for s in scores))
        lines.append(mean + [""] * (len(lines[0]) - len(mean)))
    return lines


def _mean(results: list[Result], recipe: Recipe, compared: bool) -> list[str]:
    """`compared` says whether all of them have a base."""
    scores = [[_passed(s) for s in scores_of(found)] for found in results]
    groups = [
        [passed_PS[-1].mean(axis=1) for passed_PS in scores],
        [passed_PS[-1].any(axis=1) for passed_PS in scores],
    ]
    if compared:
        groups.append([trained_PS.mean(axis=1) - base_PS.mean(axis=1) for base_PS, trained_PS in scores])
    means = [
        stats.mean_of_means(group, recipe.evaluation.bootstrap, recipe.seed, ends)
        for group, ends in zip(groups, (stats.SHARE, stats.SHARE, stats.DIFFERENCE), strict=False)
    ]
    cells = ["mean", "", *(percent(e) for e in means[:2]), "", "", ""]
    return cells + [percent(e, signed=True) for e in means[2:]]


def _passed(s: Score) -> np.ndarray:
    """Problems by samples, in the order of the problems' ids."""
    return np.array([s.per_problem[problem_id] for problem_id in sorted(s.per_problem)], dtype=bool)


def tables(found: Result) -> list[tuple[str, list[list[str]], str]]:
    """The tables of one benchmark, each as (title, header and rows, what they mean)."""
    scores = scores_of(found)
    b = found["benchmark"]
    checkpoint = scores[-1]
    about = f"{b['title']}, {checkpoint.problems} problems, {checkpoint.samples} samples each."
    about = " ".join([about, *(f"Note: {note}." for note in [*b["notes"], *found["base_differs"]])])
    grouped = [_bucket(tree) for tree in found["buckets"]]
    explained = " ".join([about, NOTE, *([PAIRED_NOTE] if checkpoint.paired_with else [])])
    out = [(b["name"], stats.table(scores, [s.name for s in scores]), explained)]
    note = BUCKETS_NOTE.format(scores[0].name)
    return [*out, (f"{b['name']}: by how often {scores[0].name} solves a problem", buckets.table(grouped), note)]


def _bucket(tree: dict[str, Any]) -> buckets.Bucket:
    columns = [
        buckets.Column(**c | {"avg": stats.Estimate(**c["avg"]), "solved": stats.Estimate(**c["solved"])})
        for c in tree["columns"]
    ]
    return buckets.Bucket(tree["label"], tree["problems"], columns)


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
