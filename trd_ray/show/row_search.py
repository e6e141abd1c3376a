"""Which row is meant: by its number, or the newest one that is as asked for.

    RUN                      ->  run_named()  ->  RecordedRows: of a run that goes on, ended or crashed, or of a corpus
    RecordedRows, WantedRow  ->  found()      ->  the row, whole
                             ->  listed()     ->  the newest ones of that kind, a dict of plain facts each

Files are read from the newest on, and only as far as is needed. For `worst` all files of that kind are read, one at a
time.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trd_ray.config import did_you_mean
from trd_ray.errors import UserError
from trd_ray.record.markdown import visible
from trd_ray.rows import RowFiles, part
from trd_ray.session import seen

RUNS = Path("runs")  # where runs are that are called by their names
YS = ("y_o", "y_r")
FACTS = [
    *("row", "step", "problem_id", "problem", "source", "trajectory", "train", "dropped_because", "fault"),
    *(f"{y}.{name}" for y in YS for name in ("passed", "finish", "ids")),
]


def _passed(row: dict[str, Any], y: str) -> bool | None:
    return part(row, y, "passed")


KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "repaired": ("y_o failed and y_r passed", lambda r: _passed(r, "y_o") is False and _passed(r, "y_r") is True),
    "broken": ("y_o passed and y_r failed", lambda r: _passed(r, "y_o") is True and _passed(r, "y_r") is False),
    "failed": (
        "nothing of it passed",
        lambda r: _passed(r, "y_o") is False and _passed(r, "y_r") is not True,
    ),
    "passed": ("y_o passed", lambda r: _passed(r, "y_o") is True),
    "dropped": ("it was not trained on", lambda r: r["train"] is False or bool(r["fault"])),
    "cut": (
        "y_o or y_r ended at the length limit",
        lambda r: any(part(r, y, "finish") == "length" for y in YS),
    ),
}


@dataclass(frozen=True)
class WantedRow:
    row: int | None = None
    step: int | None = None
    problem: str | None = None
    source: str | None = None
    kind: str | None = None  # of KINDS
    worst: bool = False  # the highest KL first, in place of the newest

    def fits(self, row: dict[str, Any]) -> bool:
        return (
            (self.problem is None or row["problem_id"] == self.problem)
            and (self.source is None or row["source"] == self.source)
            and (self.kind is None or KINDS[self.kind][1](row))
        )

    def __str__(self) -> str:
        said = [f"is {self.kind} ({KINDS[self.kind][0]})"] if self.kind else []
        said += [f"is of problem {visible(self.problem)}"] if self.problem is not None else []
        said += [f"is from source {visible(self.source)}"] if self.source is not None else []
        return " and ".join(said) or "is there"


class RecordedRows:
    """The rows that a run has recorded so far, a file a step; or the answers of one of its evaluations."""

    def __init__(self, path: Path, files: list[tuple[int, Path]], evaluation: str | None = None):
        self.path = path
        self.files = files
        self.evaluation = evaluation

    def __str__(self) -> str:
        return f"{self.path}, evaluation {self.evaluation}" if self.evaluation else str(self.path)

    @property
    def steps(self) -> str:
        first, last = self.files[0][0], self.files[-1][0]
        return f"step {first}" if first == last else f"steps {first} to {last}"

    def of_step(self, step: int | None) -> list[tuple[int, Path]]:
        if self.evaluation and step is not None:
            raise UserError("--evaluation names one evaluation, and --step one step of training: leave one of them out")
        chosen = [(number, file) for number, file in self.files if step in (None, number)]
        if not chosen:
            raise UserError(f"{self} has no rows of step {step}: it has those of {self.steps}")
        return chosen

    def read(self, file: Path, columns: list[str] | None = None, row: int | None = None) -> pa.Table:
        where = None if row is None else pc.field("row") == row
        try:
            rows = RowFiles([file])
            return rows.to_table(where=where) if columns is None else rows.to_table(columns, where)
        except (pa.ArrowInvalid, OSError) as e:
            said = " ".join(str(e).split())[:200]
            raise UserError(f"{file} cannot be read ({said}): if the run goes on just now, ask again") from e


def run_named(name: str, evaluation: str | None = None) -> RecordedRows:
    """The run of this name, a directory or one below runs/. Raises UserError where there is none, or none with rows.

    `evaluation` is one of its evaluations, such as "trained", or "old/trained" of the set old.
    """
    for place in (Path(name).expanduser(), RUNS / name):
        if not place.is_dir():
            continue
        if evaluation is not None:
            return _evaluated(place, evaluation)
        files = [(_number(file), file) for file in place.glob("rows/step-*.parquet") if _number(file) >= 0]
        if files:
            return RecordedRows(place, sorted(files))
        runs = [str(run) for run in seen.runs_below(place) if run != place and next(run.glob("rows/step-*"), None)]
        if runs:
            raise UserError(f"{place} holds several runs: name one of them, such as {runs[-1]}")
        raise UserError(
            f"{place} has no rows (rows/step-*.parquet): they come when the first step of trd train or trd refine is "
            "recorded"
        )
    known = [str(directory.relative_to(RUNS)) for directory in seen.runs_below(RUNS)]
    close = did_you_mean(name, known) if known else ""
    raise UserError(f"there is no run {name}{close}: name a run directory, or a run below {RUNS}/")


def _evaluated(place: Path, evaluation: str) -> RecordedRows:
    folder = place / "evaluation"
    there = {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.parquet"))}
    if evaluation not in there:
        raise UserError(f"{place} has no evaluation {visible(evaluation)}: it has {', '.join(there) or 'none yet'}")
    rows = RecordedRows(place, [(0, there[evaluation])], evaluation)
    if "row" not in pq.read_schema(there[evaluation]).names:
        raise UserError(
            f"{place} is a directory of trd evaluate, whose samples have no problems and prompts beside them: "
            "--evaluation shows the evaluations of a run that trains"
        )
    return rows


def _number(file: Path) -> int:
    digits = file.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def found(run: RecordedRows, wish: WantedRow) -> dict[str, Any]:
    """The row that is meant, with every column. Raises UserError where there is none."""
    if wish.row is not None:
        for _, file in run.of_step(wish.step)[::-1]:
            if (rows := run.read(file, row=wish.row)).num_rows:
                return rows.to_pylist()[0]
        raise UserError(_no_such_row(run, wish))
    best = next(_in_order(run, wish), None)
    if best is None:
        raise UserError(_none_fits(run, wish))
    return run.read(best[1], row=best[0]["row"]).to_pylist()[0]


def listed(run: RecordedRows, wish: WantedRow, count: int) -> list[dict[str, Any]]:
    """The facts of the first `count` rows that are as asked for, each with `kl`, the mean a token, or None."""
    rows: list[dict[str, Any]] = []
    kl: dict[Path, dict[int, float]] = {}
    for facts, file in _in_order(run, wish):
        if "kl" not in facts and file not in kl:
            kl[file] = _kl_by_row(run, file)
        rows.append({"kl": kl.get(file, {}).get(facts["row"])} | facts)
        if len(rows) == count:
            break
    if not rows:
        raise UserError(_none_fits(run, wish))
    return rows


def _in_order(run: RecordedRows, wish: WantedRow) -> Iterator[tuple[dict[str, Any], Path]]:
    """What fits and the file that it is in: the newest first, or that with the highest KL."""
    files = run.of_step(wish.step)[::-1]
    if not wish.worst:
        for _, file in files:
            yield from ((row, file) for row in _facts(run, file)[::-1] if wish.fits(row))
        return
    scored: list[tuple[float, dict[str, Any], Path]] = []
    for _, file in files:
        kl = _kl_by_row(run, file)
        scored += [
            (kl[r["row"]], r | {"kl": kl[r["row"]]}, file) for r in _facts(run, file) if r["row"] in kl and wish.fits(r)
        ]
    if not scored and any(wish.fits(row) for _, file in files for row in _facts(run, file)):
        raise UserError(
            f"no row of {run} has the KL of its tokens: a run keeps it with diagnostics.tokens=true, and a corpus "
            "or a run of an earlier version has none"
        )
    yield from ((row, file) for _, row, file in sorted(scored, key=lambda one: -one[0]))


def _facts(run: RecordedRows, file: Path) -> list[dict[str, Any]]:
    table = run.read(file, FACTS)
    rows = table.drop_columns([f"{y}.ids" for y in YS]).to_pylist()
    for y in YS:
        # pyarrow.compute makes its functions when it is imported, out of a type checker's sight.
        lengths = pc.list_value_length(table[f"{y}.ids"]).to_pylist()  # pyright: ignore
        for row, tokens in zip(rows, lengths, strict=True):
            found = {name: row.pop(f"{y}.{name}") for name in ("passed", "finish")} | {"tokens": tokens}
            row[y] = None if tokens is None else found
    return rows


def _kl_by_row(run: RecordedRows, file: Path) -> dict[int, float]:
    """The mean KL a token of each row, of what it trained on; rows without one are left out."""
    found = {}
    table = run.read(file, ["row", "scored"])
    for row, scored in zip(table["row"].to_pylist(), table["scored"], strict=True):
        # What was trained on is the first one; others may be scored too.
        if scored.is_valid and len(scored.values) and scored.values.field("trained")[0].as_py():
            kl = np.asarray(scored.values.field("kl")[0].values or [], dtype=np.float64)
            if np.isfinite(kl).any():
                found[row] = float(np.nanmean(np.where(np.isfinite(kl), kl, np.nan)))
    return found


def _no_such_row(run: RecordedRows, wish: WantedRow) -> str:
    files = run.of_step(wish.step)
    numbers = [n for _, file in (files[0], files[-1]) for n in run.read(file, ["row"])["row"].to_pylist()]
    rows = f"{min(numbers)} to {max(numbers)}" if numbers else "none"
    of = "" if run.evaluation else f" of {run.steps if wish.step is None else f'step {wish.step}'}"
    return f"{run} has no row {wish.row}: its rows{of} are {rows}"


def _none_fits(run: RecordedRows, wish: WantedRow) -> str:
    counts: Counter[str] = Counter()
    for _, file in run.of_step(wish.step):
        for row in _facts(run, file):
            counts["rows"] += 1
            counts.update(kind for kind, (_, fits) in KINDS.items() if fits(row))
    of = str(run) if wish.step is None else f"step {wish.step} of {run}"
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    return f"no row of {of} {wish}: of {counts['rows']} rows {told or 'none has a verdict'}"
