"""The results of `trd compare` as tables of text, which its report, the terminal and the page show.

comparison.json  ->  tables()  ->  (title, header and rows, what they mean), each table that has something to show

What is given alike beside steps, and what is covered, stands in design_tables.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trd_ray.report.design_tables import coverage, equal
from trd_ray.report.estimates import in_percent

# The stages whose seconds are counted; they overlap.
STAGES = ["sample", "verify", "refine", "train", "sync", "overhead"]
MOST_NAMED = 12  # cells that are not finished

Lines = list[list[str]]


def tables(found: dict[str, Any]) -> list[tuple[str, Lines, str]]:
    """Every table that has something to show, as (title, header and rows, what they mean)."""
    lines = [(mode, method, line) for mode, of_mode in found["modes"].items() for method, line in of_mode.items()]
    if not lines:
        return []
    runs = [(mode, method, line) for mode, method, line in lines if "cost" in line]
    made = [_scores(found, lines), *equal(found), *_of_sets(found, lines), coverage(found, lines)]
    made += [_cost(runs), _trained_on(runs), _tuning(found)]
    return [one for one in made if len(one[1]) > 1]


def _of_sets(found: dict[str, Any], lines: list[tuple[str, str, dict]]) -> list[tuple[str, Lines, str]]:
    """A table for each of evaluation.sets, with the columns of the scores, and what became of a guard."""
    out = []
    for name in dict.fromkeys(name for _, _, line in lines for name in line.get("sets", {})):
        own = [(mode, method, line["sets"][name]) for mode, method, line in lines if name in line.get("sets", {})]
        _, shown, note = _scores(found, own)
        shown = [[line[0], *line[2:]] for line in shown]  # the learning rates stand above
        guard = any("guard" in line for _, _, line in own)
        if guard:
            shown = [[*shown[0], "guard"]] + [
                [*cells, line.get("guard", "")] for cells, (_, _, line) in zip(shown[1:], own, strict=True)
            ]
        out.append((f"Scores on {name}{' (guard)' * guard}", shown, note))
    return out


def _lost(lines: list[tuple[str, str, dict]]) -> str:
    """A sentence that names every guard that a method has lost; "" where there is none."""
    lost = [
        f"{mode} {method} ({', '.join(names)})"
        for mode, method, line in lines
        if (names := [name for name, own in line.get("sets", {}).items() if own.get("guard") == "lost"])
    ]
    return f" Guards are lost by {', '.join(lost)}: see their tables." if lost else ""


def _scores(found: dict[str, Any], lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    some = lines[0][2]
    avg, last = f"avg@{some['samples']}", f"pass@{max(int(m[5:]) for m in some['scores'] if m.startswith('pass@'))}"
    against = found["against"]
    header = ["", "learning rate", avg.capitalize(), "over seeds", "worst", "collapsed"]
    differences = [("minus_base", "base")] + ([("minus_against", against)] if against else [])
    header += [f"{avg.capitalize()} - {other}" for _, other in differences] + ["could tell"]
    header += [last.capitalize(), *(f"{last.capitalize()} - {other}" for _, other in differences), "tokens"]
    out = [header]
    for mode, method, line in lines:
        spread = line["scores"][avg]["std_over_seeds"]
        cells = [f"{mode} {method}", f"{line['learning_rate']:g}" if "learning_rate" in line else ""]
        cells += [in_percent(line["scores"][avg]), "" if spread is None else f"{100 * spread:.1f}"]
        cells += [worst_of(line, avg), collapsed(line)]
        cells += [in_percent(line.get(key, {}).get(avg), signed=True) for key, _ in differences]
        cells.append(could_tell(line, avg))
        cells.append(in_percent(line["scores"][last]))
        cells += [in_percent(line.get(key, {}).get(last), signed=True) for key, _ in differences]
        out.append([*cells, f"{line['tokens_mean']:.1f}"])
    return "Scores", out, f"{_about(found, lines)}{_lost(lines)}"


def unfinished(names: Sequence[str]) -> str:
    """Cells by name or, where they are many, how many of each method; "" for none."""
    if not names:
        return ""
    if len(names) <= MOST_NAMED:
        return f"Not finished: {', '.join(names)}."
    counts = Counter(name.rpartition("/")[0] for name in names)
    return f"Not finished: {', '.join(f'{n} of {method}' for method, n in counts.items())}."


def _about(found: dict[str, Any], lines: list[tuple[str, str, dict]]) -> str:
    some = lines[0][2]
    fewest, most = (of(len(line["seeds"]) for _, _, line in lines) for of in (min, max))
    bases = found.get("bases") or [""]
    return (
        f"{some['problems']} held-out problems, {some['samples']} samples each, "
        f"{most if fewest == most else f'{fewest} to {most}'} seed{'s' * (most > 1)}"
        f"{f', on each of {len(bases)} bases' if len(bases) > 1 else ''}. "
        f"Percent; in brackets the {found['level']:.0%} interval over seeds and problems"
        f"{', of these bases' if len(bases) > 1 else ''}. Differences are paired by seed and problem, and their "
        "intervals corrected for how many of a score stand in the table (max-t). Where there is one seed, an interval "
        "holds problems alone. Over seeds: the standard deviation of the seeds' scores. Worst: the lowest run. "
        "Collapsed: runs below half of their base. Could tell: the smallest difference that so many seeds and problems "
        "find in 80% of cases, of the last difference to its left. Tokens: the mean length of an answer."
    )


def worst_of(line: dict[str, Any], avg: str) -> str:
    """The lowest of the runs."""
    by_seed = line["scores"][avg].get("by_seed") or []
    return f"{100 * min(by_seed):.1f}" if len(by_seed) > 1 else ""


def collapsed(line: dict[str, Any]) -> str:
    n = line.get("collapses")
    return "" if n is None else f"{n} of {line['runs']}"


def could_tell(line: dict[str, Any], avg: str) -> str:
    """The smallest difference that the design finds, from `against` where there is one, else from the base."""
    tree = line.get("minus_against") or line.get("minus_base") or {}
    found = (tree.get(avg) or {}).get("detectable")
    return "" if found is None else f"{100 * found:.1f}"


def _cost(lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    out = [["a run", "tokens sampled", "refined", "scored", "trained", "prefill", "seconds", *STAGES]]
    for mode, method, line in lines:
        tokens = line["cost"]["tokens"]
        seconds = line["cost"]["seconds"]
        out.append(
            [f"{mode} {method}", *(f"{tokens[kind]:,.0f}" for kind in ("sampled", "refined", "scored", "trained"))]
            + [f"{line['cost'].get('prefill', 0):,.0f}"]
            + [f"{seconds[stage]:.1f}" for stage in ["step", *STAGES]]
        )
    note = (
        "Means over seeds. Refined: all candidates. Scored: refinements whose likelihood under the student was asked "
        "for. Prefill: the tokens of all prompts, and those scored. Seconds are those of the steps; a stage's are the "
        "wall time in which it had work under way, and stages overlap. The start of the learner and the evaluation are "
        "not in them."
    )
    return "Cost", out, note


def _trained_on(lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    forms = {
        "raw_passed": ("raw pass", ".3f"),
        "refined_passed": ("refined pass", ".3f"),
        "raw_tokens": ("raw tokens", ".1f"),
        "refined_tokens": ("refined tokens", ".1f"),
        "kl_first": ("KL at first", ".4f"),
        "kl_last": ("at last", ".4f"),
        "grad_norm": ("gradient norm", ".3f"),
    }
    out = [["", *(label for label, _ in forms.values())]]
    for mode, method, line in lines:
        values = [(line["trained_on"].get(key), form) for key, (_, form) in forms.items()]
        out.append([f"{mode} {method}", *("-" if v is None else format(v, form) for v, form in values)])
    note = (
        "Means over steps and seeds. KL: the forward KL of student and teacher in nats a trained token, whatever is "
        "minimised, over the first and the last quarter of the steps."
    )
    return "What they trained on", out, note


def _tuning(found: dict[str, Any]) -> tuple[str, Lines, str]:
    scored = found["tuning"]
    rates = sorted({entry["learning_rate"] for entry in scored})
    out = [["", *(f"{rate:g}" for rate in rates)]]
    for mode, method in dict.fromkeys((entry["mode"], entry["method"]) for entry in scored):
        cells = {e["learning_rate"]: e for e in scored if (e["mode"], e["method"]) == (mode, method)}
        out.append([f"{mode} {method}", *(_tuned(cells.get(rate)) for rate in rates)])
    if not scored:
        return "Learning rates", [], ""
    some = scored[0]
    note = (
        f"{some['measure'].capitalize()} on {some['problems']} problems that neither train nor stand above, after "
        f"{some['steps']} steps with one seed; > marks the learning rate of the final runs."
    )
    if edge := [f"{e['mode']} {e['method']}" for e in scored if e.get("edge")]:
        note += f" At the end of what was tried, so that a wider grid might lift them: {', '.join(edge)}."
    shared = [e for e in scored if e["chosen"] and len(e.get("for") or []) > 1]
    if shared:
        told = "; ".join(f"{e['mode']} {e['method']} for {', '.join(e['for'])}" for e in shared)
        note += f" One tuning a family: {told}."
    return "Learning rates", out, note


def _tuned(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None else f"{'> ' if entry['chosen'] else ''}{in_percent(entry['score'])}"
