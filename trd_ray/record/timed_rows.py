"""What each request of a run took, from its rows, without texts in memory: what costs are calibrated from.

rows/*.parquet  ->  timed_rows()  ->  TimedRows of trd_ray.economics.calibration
"""

from typing import Any

import pyarrow.compute as pc

from trd_ray.economics.calibration import Timed, TimedRow
from trd_ray.economics.learning import Trained
from trd_ray.rows import RowFiles

_LISTS = ("student_prompt_ids", "refine_prompt_ids", "student_ids", "teacher_ids", "response_ids", "y_o.ids", "y_r.ids")
_PLAIN = (
    *("step", "train", "refine_candidates", "refine_tokens", "refine_kept_tokens"),
    *(f"{y}.{name}" for y in ("y_o", "y_r") for name in ("start_s", "seconds", "engine", "verify_seconds")),
)


def timed_rows(stored: RowFiles) -> list[TimedRow]:
    """The rows whose sampling was timed, in the order of the run."""
    found = []
    for table in stored.tables([*_PLAIN, *_LISTS]):
        columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in _PLAIN}
        # pyarrow.compute makes its functions at import, where no type checker sees them.
        columns |= {name: pc.list_value_length(table[name]).to_pylist() for name in _LISTS}  # pyright: ignore
        for i in range(table.num_rows):
            row = {name: values[i] for name, values in columns.items()}
            sampled = _timed(row, "y_o", "student_prompt_ids")
            if sampled:
                refined = _timed(row, "y_r", "refine_prompt_ids")
                if refined:
                    refined = refined._replace(others=_others(row, refined.tokens))
                verified = sum(row[f"{y}.verify_seconds"] or 0.0 for y in ("y_o", "y_r"))
                found.append(TimedRow(row["step"], sampled, refined, _trained(row), verified))
    return found


def _timed(row: dict[str, Any], y: str, prompt: str) -> Timed | None:
    tokens, start, seconds = row[f"{y}.ids"], row[f"{y}.start_s"], row[f"{y}.seconds"]
    if tokens is None or start is None or seconds is None:
        return None
    kept = (row["refine_kept_tokens"] or 0) if y == "y_r" else 0  # not generated, but read with the prompt
    if kept and kept == tokens:
        return None
    engine = row[f"{y}.engine"] or "engine"
    return Timed((row[prompt] or 0) + kept, tokens - kept, start, seconds, engine, kept=kept)


def _others(row: dict[str, Any], chosen: int) -> tuple[int, ...]:
    """Tokens of the refinements that were not chosen, of which a row keeps the sum."""
    more = (row["refine_candidates"] or 1) - 1
    return (round((row["refine_tokens"] - chosen) / more),) * more if more > 0 else ()


def _trained(row: dict[str, Any]) -> Trained | None:
    student, response = row["student_ids"], row["response_ids"]
    if not row["train"] or student is None or response is None:
        return None
    return Trained(student, row["teacher_ids"] or 0, response)
