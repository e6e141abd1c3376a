"""Whether a run helped, in a sentence: the difference in Avg@k on held-out problems, with its interval.

    scores, status, what it cost  ->  helped()  ->  kind and sentences
    scores of every set           ->  moved()   ->  a line each for a picture of intervals

An answer is only given where the interval is clear of zero.
"""

from dataclasses import dataclass
from typing import Any

from trd_ray.record.guards import difference, is_lost
from trd_ray.report.recorded import Recorded
from trd_ray.report.spent import Spent
from trd_ray.score.stats import Estimate, Score

HEADLINES = {
    "better": "It helped",
    "worse": "It made the student worse",
    "unclear": "No difference was shown",
    "unknown": "Whether it helped is not known",
    "corpus": "A corpus, not a training",
}


@dataclass(frozen=True)
class Helped:
    kind: str  # one of HEADLINES
    sentences: list[str]

    @property
    def headline(self) -> str:
        return HEADLINES[self.kind]


def helped(run: Recorded, cost: Spent) -> Helped:
    last = next((score for score in reversed(run.evaluations) if score.paired_with), None)
    found = difference(last) if last else None
    if not run.trains:
        kind, first = "corpus", _corpus(run)
    elif last is None or found is None:
        kind, first = "unknown", _unknown(run)
    else:
        kind, first = kind_of(found), _told(last, found, run.steps)
    sentences = [first, *_refined(run), *_guards(run), _state(run), cost.sentence()]
    return Helped(kind, [sentence for sentence in sentences if sentence])


def kind_of(found: Estimate) -> str:
    if not found.clear_of_zero:
        return "unclear"
    return "better" if found.value > 0 else "worse"


def _told(last: Score, found: Estimate, steps: int) -> str:
    after = last.scores[f"avg@{last.samples}"].value
    clear = "" if found.clear_of_zero else ", which is not clear of zero"
    by_then = f", by step {last.step}, the last that was evaluated" if last.step < steps else ""
    return (
        f"Training moved Avg@{last.samples} on {last.problems} held-out problems by {points(found)} points, from "
        f"{100 * (after - found.value):.1f}% to {100 * after:.1f}%{clear}{by_then}."
    )


def points(found: Estimate) -> str:
    """A difference of shares in points, with its 95% interval."""
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.value:+.1f}{interval}"


def _unknown(run: Recorded) -> str:
    if not run.recipe.evaluation.path:
        return "The run has no held-out problems: name some with evaluation.path, and the next run says."
    if not run.evaluations:
        return "No evaluation is finished yet." if run.state == "running" else "It has no finished evaluation."
    if not run.recipe.evaluation.before:
        return "The base was not evaluated: set evaluation.before=true, and the next run says."
    if run.state == "running":
        return "The base is evaluated, and the trained student is not yet."
    return "No evaluation of the trained student was finished."


def _corpus(run: Recorded) -> str:
    return f"It keeps {run.total('rollouts') or 0:,.0f} rollouts with their refinements, to train on later."


def _refined(run: Recorded) -> list[str]:
    cells = ledger_of(run)
    n = sum(cells.values())
    if not n:
        return []
    raw, refined = cells["pass_pass"] + cells["pass_fail"], cells["pass_pass"] + cells["fail_pass"]
    return [f"Refinement took the pass rate of {n:,} rollouts from {raw / n:.1%} to {refined / n:.1%}."]


def ledger_of(run: Recorded) -> dict[str, int]:
    """The four cells of {y_o pass, fail} -> {y_r pass, fail} over all steps; all 0 where nothing was refined."""
    names = [f"{raw}_{refined}" for raw in ("pass", "fail") for refined in ("pass", "fail")]
    return {name: int(run.total(f"ledger/{name}") or 0) for name in names}


def _guards(run: Recorded) -> list[str]:
    lost = [
        f"{name} ({points(moved)} points)"
        for name, scores in run.sets.items()
        if (asked := run.recipe.evaluation.sets.get(name)) and asked.guard and is_lost(scores[-1])
        if (moved := difference(scores[-1]))
    ]
    return [f"It lost what a guard stands for: {', '.join(lost)}."] if lost else []


def _state(run: Recorded) -> str:
    """What became of a run that is not done, and how it goes on."""
    of = f" of {run.total_steps}" if run.total_steps else ""
    at = f"step {run.steps}{of}"
    said = {
        "running": f"The run still goes on, at {at}.",
        "stopped": f"The run was stopped at {at}.",
        "failed": f"The run failed at {at}.",
        "ending": f"The run ended early, at {at}.",
        "dead": f"The run crashed at {at}: its process is gone without a last word.",
    }.get(run.state, "")
    kept = run.directory.checkpoints()
    if said and run.state != "running" and kept:
        said += f" Checkpoint {kept[-1][0]} is kept: the same command with --resume goes on."
    return said


def moved(run: Recorded) -> list[dict[str, Any]]:
    """Avg@k after against before, of evaluation.path and of each set: a name, what it is, the difference."""
    of_all = {"held-out problems": run.evaluations, **run.sets}
    found = []
    for name, scores in of_all.items():
        last = next((score for score in reversed(scores) if score.paired_with), None)
        if last and (e := difference(last)):
            asked = run.recipe.evaluation.sets.get(name)
            guard = bool(asked and asked.guard)
            about = f"Avg@{last.samples}, {last.problems} problems{', guard' if guard else ''}"
            found.append({"name": name, "about": about, "estimate": e, "kind": kind_of(e)})
    return found
