"""The results of `trd compare` as tables of text, which its report, the terminal and the page show.

comparison.json  ->  tables()  ->  (title, header and rows, what they mean), each table that has something to show
"""

from typing import Any

# The stages whose seconds are counted; they overlap.
STAGES = ["sample", "verify", "refine", "train", "sync", "overhead"]

Lines = list[list[str]]


def tables(found: dict[str, Any]) -> list[tuple[str, Lines, str]]:
    """Every table that has something to show, as (title, header and rows, what they mean)."""
    lines = [(mode, method, line) for mode, of_mode in found["modes"].items() for method, line in of_mode.items()]
    if not lines:
        return []
    runs = [(mode, method, line) for mode, method, line in lines if "cost" in line]
    made = [_scores(found, lines), *_of_sets(found, lines), _cost(runs), _trained_on(runs), _tuning(found)]
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
    header = ["", "learning rate", avg.capitalize(), "over seeds"]
    differences = [("minus_base", "base")] + ([("minus_against", against)] if against else [])
    header += [f"{avg.capitalize()} - {other}" for _, other in differences]
    header += [last.capitalize(), *(f"{last.capitalize()} - {other}" for _, other in differences), "tokens"]
    out = [header]
    for mode, method, line in lines:
        spread = line["scores"][avg]["std_over_seeds"]
        cells = [f"{mode} {method}", f"{line['learning_rate']:g}" if "learning_rate" in line else ""]
        cells += [_percent(line["scores"][avg]), "" if spread is None else f"{100 * spread:.1f}"]
        cells += [_percent(line.get(key, {}).get(avg), signed=True) for key, _ in differences]
        cells.append(_percent(line["scores"][last]))
        cells += [_percent(line.get(key, {}).get(last), signed=True) for key, _ in differences]
        out.append([*cells, f"{line['tokens_mean']:.1f}"])
    seeds = len(found["seeds"])
    note = (
        f"{some['problems']} held-out problems, {some['samples']} samples each, {seeds} seed{'s' * (seeds > 1)}. "
        f"Percent; in brackets the {found['level']:.0%} interval over problems of the seeds' mean. "
        "Differences are paired by problem. Over seeds: the standard deviation of the seeds' scores. Tokens: the mean "
        f"length of an answer.{_lost(lines)}"
    )
    return "Scores", out, note


def _cost(lines: list[tuple[str, str, dict]]) -> tuple[str, Lines, str]:
    out = [["a run", "tokens sampled", "refined", "scored", "trained", "seconds", *STAGES]]
    for mode, method, line in lines:
        tokens = line["cost"]["tokens"]
        seconds = line["cost"]["seconds"]
        out.append(
            [f"{mode} {method}", *(f"{tokens[kind]:,.0f}" for kind in ("sampled", "refined", "scored", "trained"))]
            + [f"{seconds[stage]:.1f}" for stage in ["step", *STAGES]]
        )
    note = (
        "Means over seeds. Refined: all candidates. Scored: refinements whose likelihood under the student was asked "
        "for. Seconds are those of the steps; a stage's are the wall time in which it had work under way, and stages "
        "overlap. The start of the learner and the evaluation are not in them."
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
        values = [(line["trained_on"][key], form) for key, (_, form) in forms.items()]
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
    return "Learning rates", out, note


def _tuned(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None else f"{'> ' if entry['chosen'] else ''}{_percent(entry['score'])}"


def _percent(e: dict[str, Any] | None, signed: bool = False) -> str:
    if e is None:
        return ""
    sign = "+" if signed else ""
    if e["low"] is None:
        return f"{100 * e['value']:{sign}.1f}"
    return f"{100 * e['value']:{sign}.1f} [{100 * e['low']:{sign}.1f}, {100 * e['high']:{sign}.1f}]"
