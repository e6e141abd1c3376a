"""What each of several verifiers (verify.functions) gave to the responses of a step or a run.

    facts of a step's or a run's rows  ->  verifier_metrics()  ->  verifiers/NAME/y_o_score, .../y_r_score
                                       ->  verifier_table()    ->  the table of summary.md

Nothing is said where one verifier judges a row. A mean is over the responses that the verifier gave a score. As in the
ledger, a row that could not be made or judged is in none.
"""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from trd_ray.record.markdown import inline, table

VERIFIERS = "verifiers/"
SCORES_OF = ("y_o", "y_r")


def score_names(verifiers: Iterable[str]) -> list[str]:
    """The metrics that a step of a run with these verifiers may have."""
    return [f"{VERIFIERS}{name}/{y}_score" for name in verifiers for y in SCORES_OF]


def verifier_metrics(facts: Iterable[dict]) -> dict[str, float]:
    return {
        f"{VERIFIERS}{name}/{y}_score": fmean(scores)
        for name, given in _by_verifier(facts).items()
        for y, scores in given.items()
    }


def verifier_table(facts: Iterable[dict]) -> str:
    """Markdown; "" where one verifier judges a row."""
    found = _by_verifier(facts)
    if not found:
        return ""
    lines = [["verifier", "mean score, raw", "responses", "mean score, refined", "responses"]]
    for name, given in found.items():
        shown = [
            (f"{fmean(scores):.3f}", str(len(scores))) if (scores := given.get(y)) else ("-", "0") for y in SCORES_OF
        ]
        lines.append([inline(name), *shown[0], *shown[1]])
    return table(lines)


def _by_verifier(facts: Iterable[dict]) -> dict[str, dict[str, list[float]]]:
    """Verifier -> trajectory -> the scores that it gave."""
    found: dict[str, dict[str, list[float]]] = {}
    for fact in facts:
        if fact["fault"]:
            continue
        for y in SCORES_OF:
            for part in fact.get(f"{y}_parts") or ():
                found.setdefault(part["name"], defaultdict(list))[y].append(part["score"])
    return dict(sorted(found.items()))
