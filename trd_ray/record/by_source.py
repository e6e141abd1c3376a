"""What a step's rows say of each source of problems (data.sources), as the ledger says it of all rows.

    facts of a step's or a run's rows  ->  source_metrics()  ->  source/NAME/rows, .../pass_rate, ...
                                       ->  source_table()    ->  the table of summary.md

Nothing is said where the rows name no source. As in the ledger, a row that could not be made or judged is in no share.
"""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from trd_ray.record.markdown import inline, table

SOURCE = "source/"
MEASURED = ("rows", "trained_rows", "pass_rate", "refined_pass_rate", "tokens_mean", "refined_tokens_mean")


def names_of(sources: Iterable[str]) -> list[str]:
    """The metrics that a step of a run with these sources may have."""
    return [f"{SOURCE}{source}/{name}" for source in sources for name in MEASURED]


def source_metrics(facts: Iterable[dict]) -> dict[str, float]:
    return {
        f"{SOURCE}{source}/{name}": value
        for source, rows in _by_source(facts).items()
        for name, value in _measured(rows).items()
    }


def source_table(facts: Iterable[dict]) -> str:
    """Markdown; "" where no row names a source."""
    found = _by_source(facts)
    if not found:
        return ""
    total = sum(map(len, found.values()))
    lines = [["source", "rows", "trained on", "raw pass", "refined pass", "raw tokens", "refined tokens"]]
    for source, rows in found.items():
        measured = _measured(rows)
        shares = [_shown(measured.get(name), ".1%") for name in ("pass_rate", "refined_pass_rate")]
        lengths = [_shown(measured.get(name), ".1f") for name in ("tokens_mean", "refined_tokens_mean")]
        counts = [f"{len(rows)} ({len(rows) / total:.1%})", str(measured["trained_rows"])]
        lines.append([inline(source), *counts, *shares, *lengths])
    return table(lines)


def _by_source(facts: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = defaultdict(list)
    for fact in facts:
        if fact["source"] is not None:
            found[fact["source"]].append(fact)
    return dict(sorted(found.items()))


def _measured(rows: list[dict]) -> dict[str, float]:
    out: dict[str, float] = {"rows": len(rows), "trained_rows": sum(bool(row["train"]) for row in rows)}
    for y, refined in (("y_o", ""), ("y_r", "refined_")):
        there = [row for row in rows if not row["fault"] and row[f"{y}_tokens"] is not None]
        if passed := [row[f"{y}_passed"] for row in there if row[f"{y}_passed"] is not None]:
            out[f"{refined}pass_rate"] = fmean(passed)
        if there:
            out[f"{refined}tokens_mean"] = fmean(row[f"{y}_tokens"] for row in there)
    return out


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
