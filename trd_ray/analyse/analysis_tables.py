"""The figures of `trd_ray.diagnostics` as tables of text, at most 80 columns wide.

a part of whole.of_run()  ->  TABLES[part]()  ->  [Drawn: a title, a header and rows of text, what they mean]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trd_ray.score.stats import Estimate, percent

MOST_STEPS = 10  # lines of a table over training
_FIGURES = {
    "rows": "rows", "mean": "KL", "row_mean": "by row", "p50": "p50", "p95": "p95", "p99": "p99", "max": "max",
    "ppl_student": "ppl S", "ppl_teacher": "ppl T", "onset": "onset",
}  # fmt: skip
_DIGITS = {"rows": 0, "p99": 2, "max": 2, "ppl_student": 2, "ppl_teacher": 2, "onset": 2}
_SUPPORT = {
    "y_o_nll": "student's NLL of y_o",
    "y_r_nll": "student's NLL of y_r",
    "edited_share": "edited share",
    "kept_share": "kept share of y_o",
    "leaks": "leaks",
    "y_o_repetition": "repetition in y_o",
    "y_r_repetition": "repetition in y_r",
    "unique_answers": "unique answers",
    "student_entropy": "student's entropy",
    "teacher_entropy": "teacher's entropy",
}
_SHARES = {"edited_share", "kept_share", "leaks", "y_o_repetition", "y_r_repetition", "unique_answers"}


@dataclass(frozen=True)
class Drawn:
    title: str
    lines: list[list[str]]  # the first is the header
    note: str
    text_columns: int = 1  # columns of text, on the left; the others hold numbers


def _signal(found: dict[str, Any]) -> Iterator[Drawn]:
    lines = [["", *_FIGURES.values()]]
    lines += [_of_figures(kind, its) for kind, its in found["all"].items()]
    yield Drawn(
        "Signal: KL(teacher, student) a token",
        lines,
        "In nats. By row: mean over trajectories of each one's mean. ppl S, ppl T: perplexity of student and teacher. "
        "Onset: probability of words that begin a doubt, per mille.",
    )
    if found["paired"]:
        lines = [["", *_FIGURES.values()]]
        for view, pair in found["paired"].items():
            lines += [_of_figures(f"{y}_{view}", pair[y]) for y in ("y_o", "y_r")]
        yield Drawn("The same, over the rows that have y_o and y_r", lines, "The paper's Figure 3, in this run.")
    kinds = list(found["kinds"])
    lines = [["step", *kinds]]
    places = _shown_steps(found)
    for at in places:
        means = [found["kinds"][kind]["mean"][at] for kind in kinds]
        lines.append([str(found["steps"][at]), *(_n(value, 4) for value in means)])
    yield Drawn("Mean KL over training", lines, _told_thinned(len(places), len(found["steps"])))


def _of_figures(name: str, figures: dict[str, float | None]) -> list[str]:
    return [name, *(_n(figures[one], _DIGITS.get(one, 3)) for one in _FIGURES)]


def _position(found: dict[str, Any]) -> Iterator[Drawn]:
    lines = [["", *(f"{10 * i}%" for i in range(10)), "third"]]
    for kind, its in _different(found).items():
        lines.append([kind, *(_n(value, 3) for value in its["kl"]), _share(its["first_third"])])
    yield Drawn(
        "Position: mean KL by tenth of the trajectory",
        lines,
        "Tenths begin at that part of the length. Third: the share of all KL that lies in the first third.",
    )


def _classes(found: dict[str, Any]) -> Iterator[Drawn]:
    for kind, its in _different(found).items():
        lines = [["", "share of KL", "share of tokens", "KL a token", "tokens"]]
        for name, one in its.items():
            cells = [_share(one["kl"]), _share(one["tokens"]), _n(one["mean"], 4), str(one["count"])]
            lines.append([name, *cells])
        yield Drawn(f"Classes of tokens: {kind}", lines, "trd_ray/diagnostics/token_classes.py says what each holds.")


def _departure(found: dict[str, Any]) -> Iterator[Drawn]:
    lines = [["", "rows", "left", "p10", "p25", "p50", "p75", "p90", "token", "before", "after"]]
    for kind, verdicts in found.items():
        for verdict, its in verdicts.items():
            places = list((its["relative"] or dict.fromkeys(("p10", "p25", "p50", "p75", "p90"))).values())
            token = its["token"]["p50"] if its["token"] else None
            name = kind if verdict == "all" else f"  y_o {verdict}"
            cells = [_share(its["departed"]), *(_share(place) for place in places), _n(token, 0)]
            lines.append([name, str(its["rows"]), *cells, _n(its["kl_before"], 3), _n(its["kl_after"], 3)])
    yield Drawn(
        "Departure: where the teacher would have left y_o",
        lines,
        "Left: share of rows with a token that the teacher gives below 1% and below a tenth of what the student gives. "
        "p10 to p90: the first one's place, of the length; token: its median number, from 0; KL before and from it on.",
    )


def _support(found: dict[str, Any]) -> Iterator[Drawn]:
    lines = [["", "all", "first step", "last step"]]
    for name, title in _SUPPORT.items():
        if name in found["per_step"]:
            known = [value for value in found["per_step"][name] if value is not None]
            form = _share if name in _SHARES else lambda value: _n(value, 3)
            lines.append([title, form(found["all"].get(name)), form(known[0]), form(known[-1])])
    yield Drawn(
        "Support: does refinement stay near the student?",
        lines,
        "NLL and entropy in nats a token; shares are means over rows. trd_ray/diagnostics/support.py defines each.",
    )
    if found["leaked"]:
        lines = [["leaks", "text", "rows", "row"]]
        for one in found["leaked"]:
            text = " ".join(one["text"].split())
            lines.append([one["pattern"], text, str(one["rows"]), "-" if one["row"] is None else str(one["row"])])
        yield Drawn("What refinements let slip", lines, "Row: the first that has it.", text_columns=2)


def _lengths(found: dict[str, Any]) -> Iterator[Drawn]:
    quantiles = ("p5", "p25", "p50", "p75", "p95", "max")
    lines = [["", "rows", "mean", *quantiles]]
    for of, title in (("all", "all"), ("already_correct", "y_o passed"), ("failed", "y_o failed")):
        for what, its in found.get(of, {}).items():
            lines.append(
                [f"{title}: {what}", str(its["rows"]), f"{its['mean']:.1f}", *(_n(its[q], 0) for q in quantiles)]
            )
    counted = found.get("reference_rows")
    note = f" References are counted for {counted} rows." if counted else ""
    yield Drawn("Lengths in tokens", lines, f"Raw is y_o, refined y_r.{note}")


def _buckets(found: dict[str, Any]) -> Iterator[Drawn]:
    for name, groups in found.get("evaluation", {}).items():
        columns = next((one["columns"] for one in groups if one["columns"]), [])
        lines = [["", "problems", *(f"Avg@{c['samples']} {c['name']}" for c in columns)]]
        for one in groups:
            cells = [percent(Estimate(**c["avg"])) for c in one["columns"]] or ["-"] * len(columns)
            lines.append([one["label"], str(len(one["problems"])), *cells])
        title = f"Held-out problems{f' of {name}' if name else ''}, by how often the base solves them"
        yield Drawn(title, lines, "Percent, with 95% intervals. The grouping fixes the base's own column.")
    if its := found.get("rows"):
        lines = [["", "problems", "rows", "y_o", "y_r", "raw", "refined", "KL"]]
        for one in its:
            cells = [_share(one["y_o_passed"]), _share(one["y_r_passed"]), _n(one["raw"], 0), _n(one["refined"], 0)]
            lines.append([one["label"], str(one["problems"]), str(one["rows"]), *cells, _n(one["kl"], 3)])
        yield Drawn(
            "This run's problems, by how often its own attempts solve them",
            lines,
            "y_o, y_r: share that passes; raw, refined: median tokens; KL a token of what trained.",
        )


def _subsets(found: list[dict[str, Any]]) -> Iterator[Drawn]:
    lines = [["", "rows", "share", "y_o", "y_r", "tokens", "raw", "refined", "KL", "edited"]]
    for one in found:
        cells = [_share(one[name]) for name in ("share", "y_o_passed", "y_r_passed")]
        cells += [str(one["tokens"]), _n(one["raw"], 0), _n(one["refined"], 0), _n(one["kl"], 3)]
        lines.append([one["subset"], str(one["rows"]), *cells, _share(one["edited_share"])])
    yield Drawn(
        "Subsets: what each train.subset would keep",
        lines,
        "y_o, y_r: share that passes; tokens to train on; raw, refined: median lengths. The paper keeps all.",
    )


TABLES: dict[str, Callable[[Any], Iterator[Drawn]]] = {
    "signal": _signal,
    "position": _position,
    "classes": _classes,
    "departure": _departure,
    "support": _support,
    "lengths": _lengths,
    "buckets": _buckets,
    "subsets": _subsets,
}


def _different(found: dict[str, Any]) -> dict[str, Any]:
    """Without the kind that is the same as what was trained on."""
    return {kind: its for kind, its in found.items() if kind == "trained" or its != found.get("trained")}


def _thinned(count: int) -> list[int]:
    """Places of at most MOST_STEPS steps, evenly spread, the first and the last among them."""
    if count <= MOST_STEPS:
        return list(range(count))
    return [round(i * (count - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)]


def _shown_steps(found: dict[str, Any]) -> list[int]:
    """Places of some steps: of those in which every kind was scored, where there are two."""
    means = [its["mean"] for its in found["kinds"].values()]
    whole = [at for at in range(len(found["steps"])) if all(mean[at] is not None for mean in means)]
    places = whole if len(whole) > 1 else list(range(len(found["steps"])))
    return [places[i] for i in _thinned(len(places))]


def _told_thinned(shown: int, count: int) -> str:
    return f"{shown} of {count} steps; --json has all." if shown < count else "In nats a token."


def _n(value: float | None, digits: int) -> str:
    """With so many decimals below 10, and with fewer above: columns stay narrow."""
    if value is None:
        return "-"
    before_the_point = len(str(int(abs(value))))
    if before_the_point > 6:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits + 1 - before_the_point)}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
