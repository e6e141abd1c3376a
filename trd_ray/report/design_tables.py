"""Tables of a comparison beside its scores at equal steps: equal tokens, equal seconds, and what is covered.

comparison.json  ->  equal(), coverage()  ->  (title, header and rows, what they mean)
"""

from typing import Any

from trd_ray.report.estimates import in_percent

Lines = list[list[str]]
UNITS = {"tokens": ("generated tokens", ",.0f", ""), "seconds": ("seconds", ",.1f", " s")}


def equal(found: dict[str, Any]) -> list[tuple[str, Lines, str]]:
    """A table for generated tokens and one for seconds; those that nothing can be said of are left out."""
    return [_equal(found, axis, tree) for axis, tree in (found.get("equal") or {}).items() if tree.get("modes")]


def _equal(found: dict[str, Any], axis: str, tree: dict[str, Any]) -> tuple[str, Lines, str]:
    what, form, unit = UNITS[axis]
    against = found["against"]
    keys = [("minus_base", "base"), *([("minus_against", against)] if against else [])]
    out: Lines = []
    budgets = []
    for mode, of_mode in tree["modes"].items():
        budgets.append(f"{mode} {format(of_mode['budget'], form)}{unit}, what {of_mode['of']} spends in all its steps")
        for method, line in of_mode["methods"].items():
            if "scores" not in line:
                spent = (
                    f"spends {format(line['never'], form)}{unit}" if "never" in line else "evaluated at its end alone"
                )
                out.append([f"{mode} {method}", spent])
                continue
            avg, most = list(line["scores"])
            by_seed = line["scores"][avg]["by_seed"]
            cells = [f"{mode} {method}", in_percent(line["scores"][avg])]
            cells += [f"{100 * min(by_seed):.1f}" if len(by_seed) > 1 else ""]
            cells += ["" if line["collapses"] is None else f"{line['collapses']} of {len(by_seed)}"]
            cells += [in_percent(line.get(key, {}).get(avg), signed=True) for key, _ in keys]
            cells += [in_percent(line["scores"][most])]
            cells += [in_percent(line.get(key, {}).get(most), signed=True) for key, _ in keys]
            out.append(cells)
    some = next(line for of in tree["modes"].values() for line in of["methods"].values() if "scores" in line)
    avg, most = (name.capitalize() for name in some["scores"])
    header = ["", avg, "worst", "collapsed", *(f"{avg} - {other}" for _, other in keys)]
    header += [most, *(f"{most} - {other}" for _, other in keys)]
    note = (
        f"Each method where it has spent as much: {'; '.join(budgets)}. Each problem's score is interpolated between "
        "the evaluations on the way, the base being the first. One on the way has its learning rate not yet warmed "
        "down. A method with a run that spends less than 98% of it has no score here. Intervals as above."
    )
    return f"Scores at equal {what}", [header, *([*line, *[""] * (len(header) - len(line))] for line in out)], note


def coverage(found: dict[str, Any], lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    """What is solved of the problems that the base never solves, and how different the answers are."""
    against = found["against"]
    header = ["", "solved of never", *([f"- {against}"] if against else []), "Pass", "maj", "greedy"]
    out: Lines = [[*header, "different answers", "entropy"]]
    of: dict[str, str] = {}
    for mode, method, line in lines:
        never, answers = line.get("never"), line.get("answers")
        if never is None and answers is None:
            continue
        if never:
            of[mode] = ", ".join(f"{n}{f' on {base}' * bool(base)}" for base, n in never["problems"].items())
        scores = line["scores"]
        samples = line["samples"]
        cells = [f"{mode} {method}", in_percent((never or {}).get("score"))]
        cells += [in_percent((never or {}).get("minus_against"), signed=True)] if against else []
        cells += [in_percent(scores.get(f"pass@{samples}")), in_percent(scores.get(f"maj@{samples}"))]
        told = answers or {}
        cells += [f"{100 * told['greedy']:.1f}" if "greedy" in told else ""]
        cells += [f"{told['unique']:.2f}" if told else "", f"{told['entropy']:.2f}" if told else ""]
        out.append(cells)
    never = "; ".join(f"{mode} {n}" for mode, n in of.items())
    note = (
        "Never: problems that no answer of the base solves, with any seed"
        f"{f' ({never})' if never else ''}; solved at least once in a run's samples. maj: the commonest answer is "
        "right. Greedy: one answer at temperature 0, where a set named greedy asks for it. Different answers and their "
        "entropy (nats) are means over problems; of programs, texts that differ are different."
    )
    return "Coverage and variety", out, note
