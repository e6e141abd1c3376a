"""What the student could do before training and must not lose: the sets of evaluation.sets with `guard: true`.

    Score with its difference from the base  ->  is_lost()    ->  whether Avg@k is below it, clear of chance
                                             ->  verdict()    ->  kept, lost, or not compared
    scores of all sets, recipe               ->  of_guards()  ->  {kind: sentence}, as the other warnings
                                             ->  section()    ->  Markdown of the summary and of a model card

A guard that was never compared, since the base was not evaluated, is named too: it guards nothing.

Pure.
"""

from collections.abc import Mapping

from trd_ray.config import Recipe
from trd_ray.record.markdown import code, inline, table
from trd_ray.score.stats import Estimate, Score, percent
from trd_ray.score.stats import table as score_table


def difference(score: Score) -> Estimate | None:
    """Avg@k of this score minus that of the base; None where they were not compared."""
    return score.paired_with.differences.get(f"avg@{score.samples}") if score.paired_with else None


def is_lost(score: Score) -> bool:
    found = difference(score)
    return found is not None and found.clear_of_zero and found.value < 0


def verdict(score: Score) -> str:
    """What became of a guard, by its newest score."""
    if difference(score) is None:
        return "not compared"
    return "lost" if is_lost(score) else "kept"


def of_loss(name: str, last: Score) -> str:
    """The warning of a guard that is lost."""
    return (
        f"The guard {code(name)} is lost: Avg@{last.samples} moved by {percent(difference(last), signed=True)} points "
        f"from the base to {last.name}, and the interval is clear of zero. Lower learner.lr or steps, mix "
        "problems of its kind into data.path, or take an earlier checkpoint."
    )


def of_guards(scores: Mapping[str, list[Score]], recipe: Recipe) -> dict[str, str]:
    """The warnings of the newest score of each guard; `scores` are those of each set, in order."""
    found: dict[str, str] = {}
    for name, asked in recipe.evaluation.sets.items():
        if not asked.guard or not scores.get(name):
            continue
        last = scores[name][-1]
        if is_lost(last):
            found[f"guard {name}"] = of_loss(name, last)
        elif difference(last) is None and last.name != "base":
            found[f"guard {name}"] = (
                f"The guard {code(name)} guards nothing: no score from before training is there to compare with. Set "
                "evaluation.before=true."
            )
    return found


def section(scores: Mapping[str, list[Score]], recipe: Recipe) -> str:
    """The sets beside evaluation.path: how each moved, and a table for each. "" where there are none."""
    scored = {name: found for name, found in scores.items() if found}
    if not scored:
        return ""
    lines = [["set", "before", "after", "difference", "guard"]]
    tables = []
    for name, found in scored.items():
        first, last = found[0], found[-1]
        before, after = (percent(one.scores.get(f"avg@{one.samples}")) for one in (first, last))
        before = before if first.name == "base" else "-"
        after = after if last.name != "base" else "-"
        asked = recipe.evaluation.sets.get(name)
        moved = percent(difference(last), signed=True)
        lines.append([inline(name), before, after, moved, verdict(last) if asked and asked.guard else ""])
        header, *rest = score_table([first, last] if last is not first else [first])
        cells = [[inline(cell) for cell in header], *rest]
        tables.append(f"{code(name)}, {last.problems} problems, {last.samples} samples each:\n\n{table(cells)}")
    note = "Avg@k in percent, in brackets the 95% interval over problems; the difference is taken problem by problem."
    return "\n\n".join([table(lines), note, *tables])
