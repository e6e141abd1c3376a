"""Every diagnostic of a directory, in one pass over its files.

    a run, one that goes on or has crashed, a corpus, an evaluation  ->  of_run()  ->  one dict of plain numbers

README.md has its shape. Nothing is written, and a step is in memory at a time.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trd_ray.config import Recipe, stored
from trd_ray.diagnostics.assumptions import EDIT_PAIRS_OF_A_RUN, EDIT_PAIRS_OF_A_STEP
from trd_ray.diagnostics.class_shares import ClassShares
from trd_ray.diagnostics.departure import Departures
from trd_ray.diagnostics.difficulty import buckets_of_rows, evaluated_buckets
from trd_ray.diagnostics.kept_tokens import edits
from trd_ray.diagnostics.position import Position
from trd_ray.diagnostics.row_facts import RowFacts
from trd_ray.diagnostics.run_tables import RunTables
from trd_ray.diagnostics.run_tokenizer import run_tokenizer
from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.diagnostics.subsets import subsets_of
from trd_ray.diagnostics.support import Support
from trd_ray.diagnostics.token_classes import TokenClasses
from trd_ray.diagnostics.token_signal import Signal
from trd_ray.diagnostics.trajectory_lengths import References, lengths_of
from trd_ray.errors import UserError

_SIGNAL = ("fault", "scored")
_FACTS = ("fault", "problem_id", "y_o.ids", "y_r.ids", "y_o.passed", "y_r.passed")
_EDITS = ("refine_edited_share", "y_o.ids", "y_r.ids", "fault")
# What each part reads of the rows.
PARTS = {
    "signal": _SIGNAL,
    "position": _SIGNAL,
    "classes": (*_SIGNAL, "y_o.ids", "y_r.ids"),
    "departure": (*_SIGNAL, "y_o.passed"),
    "support": (
        *_EDITS,
        *("problem", "problem_id", "epoch", "scored", "refine_student_logprob"),
        *("y_o.logprobs", "y_o.extracted", "y_r.text"),
    ),
    "lengths": (*_FACTS, "reference"),
    "buckets": (*_FACTS, "scored"),
    "subsets": (*_FACTS, *_EDITS, "scored"),
}
_UNTRAINED = (
    "no row has what the learner found at its tokens: set diagnostics.tokens=true for the next run; a loss without a "
    "teacher has none, nor have a corpus that trd refine made and an evaluation, since nothing trains there"
)
NOTHING_YET = "no step is recorded: look again once the first one is"
ABSENT = {
    "signal": _UNTRAINED,
    "position": _UNTRAINED,
    "classes": _UNTRAINED,
    "departure": "no y_o was scored: set diagnostics.rows=8 for the next run, and 8 rows of a step are scored on it",
    "support": "no row has a response",
    "lengths": "no row has a response",
    "buckets": (
        "the base was not evaluated, and no problem has several rollouts: set evaluation.path, or sampler.n=4, for the "
        "next run"
    ),
    "subsets": "there are no rows",
}


def of_run(
    directory: Path | str,
    *,
    only: tuple[str, ...] = tuple(PARTS),
    steps: tuple[int | None, int | None] = (None, None),
    source: str | None = None,
    look: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """The parts that are asked for, of the steps between the two (None: no end) and of one source of problems.

    Held-out problems (`buckets` of evaluations) know neither steps nor sources. A run without a step has nothing else.
    `look` is called before each step; what it raises ends the pass.
    Raises UserError for a directory of another kind or with a damaged file, and for steps or a source that no row is
    of.
    """
    directory = Path(directory).expanduser().absolute()
    tables = RunTables.of(directory, steps, source)
    passed = _Pass(directory, only, len(tables.files))
    for step, table in tables.each(list(dict.fromkeys(name for part in only for name in PARTS[part]))):
        look()
        passed.add(step, StepRows(table))
    if not passed.rows and (tables.files or steps != (None, None) or source is not None):
        raise UserError(_no_rows(directory, tables))
    return _plain(passed.found(tables.kind))


class _Pass:
    """What one pass over the rows gathers."""

    def __init__(self, directory: Path, only: tuple[str, ...], files: int):
        self.directory = directory
        self.only = only
        self.reads_scored = any("scored" in PARTS[part] for part in only)
        self.recipe = _recipe(directory)
        self.rows = self.faults = self.scored_rows = 0
        self.steps: list[int] = []
        self.pairs_of_a_step = min(EDIT_PAIRS_OF_A_STEP, EDIT_PAIRS_OF_A_RUN // max(1, files))
        self.signal, self.position, self.departures = Signal(), Position(), Departures()
        self.support, self.facts, self.references = Support(), RowFacts(), References()
        self.missing: dict[str, str] = {}
        self.classes: ClassShares | None = None
        self.tokenizer: Any = None
        if files and {"classes", "lengths"} & set(only):
            self._load_tokenizer()

    def _load_tokenizer(self) -> None:
        try:
            self.tokenizer = run_tokenizer(self.directory, self.recipe)
            self.classes = ClassShares(TokenClasses(self.tokenizer)) if "classes" in self.only else None
        except (UserError, OSError) as e:
            for part in {"classes", "lengths"} & set(self.only):
                what = "tokens have no texts" if part == "classes" else "the lengths of references are not known"
                self.missing[part] = f"{what}, since the student's tokenizer cannot be read: {e}"

    def add(self, step: int, rows: StepRows) -> None:
        self.steps.append(step)
        self.rows += rows.count
        self.faults += int((~rows.sound_B).sum())
        if self.reads_scored:
            self.scored_rows += len(np.unique(rows.scored.row_E))
        if "signal" in self.only:
            self.signal.add(step, rows.scored)
        if "position" in self.only:
            self.position.add(rows.scored)
        if self.classes:
            self.classes.add(rows)
        if "departure" in self.only:
            self.departures.add(rows.scored, rows.passed["y_o"])
        unknown_B = np.full(rows.count, np.nan)
        edited = (unknown_B, unknown_B)
        if {"support", "subsets"} & set(self.only):
            edited = edits(rows, self.pairs_of_a_step)
        if "support" in self.only:
            self.support.add(step, rows, edited)
        if {"lengths", "buckets", "subsets"} & set(self.only):
            self.facts.add(rows, edited[0])
        if "lengths" in self.only and self.tokenizer is not None:
            self.references.add(rows.values("problem_id"), rows.values("reference"))

    def found(self, kind: str) -> dict[str, Any]:
        made = {
            "signal": self.signal.found,
            "position": self.position.found,
            "classes": lambda: self.classes.found() if self.classes else None,
            "departure": self.departures.found,
            "support": lambda: self.support.found(_entropies(self.directory)),
            "lengths": lambda: lengths_of(self.facts, self._reference_tokens()),
            "buckets": self._buckets,
            "subsets": lambda: subsets_of(self.facts),
        }
        about = {"rows": self.rows, "faults": self.faults, "from": kind, "steps": self.steps}
        out: dict[str, Any] = {"about": about | ({"scored_rows": self.scored_rows} if self.reads_scored else {})}
        for part in self.only:
            if its := made[part]():
                out[part] = its
            else:
                self.missing.setdefault(part, ABSENT[part] if self.rows else NOTHING_YET)
        return out | ({"missing": self.missing} if self.missing else {})

    def _reference_tokens(self) -> dict[str, int] | None:
        if self.tokenizer is None or not len(self.references):
            return None
        return self.references.tokens(
            lambda texts: [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        )

    def _buckets(self) -> dict[str, Any] | None:
        resamples, seed = (self.recipe.evaluation.bootstrap, self.recipe.seed) if self.recipe else (10000, 0)
        evaluated = evaluated_buckets(self.directory, resamples=resamples, seed=seed)
        of_rows = buckets_of_rows(self.facts)
        return {k: v for k, v in (("evaluation", evaluated), ("rows", of_rows)) if v} or None


def _recipe(directory: Path) -> Recipe | None:
    """None where there is none that this version reads: most figures do without."""
    try:
        return stored(directory / "recipe.yaml")
    except (UserError, OSError):
        return None


def _no_rows(directory: Path, tables: RunTables) -> str:
    first, last = tables.steps
    asked = (
        [f"steps {'' if first is None else first}:{'' if last is None else last}"]
        if tables.steps != (None, None)
        else []
    )
    asked += [f"source {tables.source!r}"] if tables.source is not None else []
    if not asked:
        return f"the files of rows in {directory} are empty"
    every = RunTables.of(directory)
    steps, sources = [], set()
    for step, table in every.each(()):
        steps.append(step)
        sources |= set(table["source"].unique().to_pylist()) - {None}
    if not steps:
        return f"no row of {directory} is of {' and '.join(asked)}: no step is recorded yet"
    named = f", and sources {', '.join(sorted(sources))}" if sources else ", and its rows name no source"
    return f"no row of {directory} is of {' and '.join(asked)}: it has steps {steps[0]} to {steps[-1]}{named}"


def _entropies(directory: Path) -> dict[int, dict[str, float]]:
    """Of the steps that metrics.jsonl has; a line that a crash cut short is left out."""
    found = {}
    try:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            metrics = json.loads(line)
            found[metrics["step"]] = {f"{who}_entropy": metrics.get(f"{who}/entropy") for who in ("student", "teacher")}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _plain(value: Any) -> Any:
    """Numbers of Python, of which none is NaN or infinite: what json.dumps takes and every reader of JSON reads."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
