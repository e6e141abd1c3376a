"""The samples of a run as a panel of its page: which rows fit, and their texts with what the learner found.

    rows/*.parquet, evaluation/**/*.parquet, the tokenizer  ->  panel()  ->  Panel, which page/samples.js draws

`choice` says which rows are shown, `stored` reads them, `token_pieces` splits their texts, and `packed_row` writes them
small. A run without a tokenizer, or without numbers for tokens, has a panel whose notes say so.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from trd_ray import config, models
from trd_ray.config import Recipe
from trd_ray.record.directory import RunDirectory
from trd_ray.report.panel import Panel
from trd_ray.report.samples import choice
from trd_ray.report.samples.choice import Light
from trd_ray.report.samples.packed_row import SCALE, PackedRows
from trd_ray.report.samples.stored import Sample, StoredEvaluations, StoredRows
from trd_ray.report.samples.token_pieces import TokenPieces

EXPLAINS = (
    "Each row is an attempt (y_o) beside its refinement (y_r), with the verdict on each. Tokens are coloured by how "
    "far teacher and student are apart."
)
NO_NUMBERS = (
    "Tokens have no colours: nothing is recorded of them here. A run with diagnostics.tokens=true, whose loss has "
    "a teacher, keeps the KL and both likelihoods of every trained token."
)
OF_EVALUATIONS = 0.25  # of the budget at most, where there are rows as well
_ROUNDS = 5
_FULL = 0.95  # of the budget: not worth another round
_PER_ROW, _PER_TOKEN = 300.0, 3.0  # bytes in the page, as a first guess
_OF_SAMPLE = ("row", "problem", "sample_index", "source", "y_o", "views")


def panel(directory: RunDirectory, budget_bytes: int, look: Callable[[], object] = lambda: None) -> Panel | None:
    """The sample browser of a run, whose data takes at most `budget_bytes` of the page; None where it has no sample.

    `look` is called between the parts of the files that are read; what it raises ends it.
    """
    stored = StoredRows(directory.row_files(), look)
    evaluations = StoredEvaluations(directory.path / "evaluation", look)
    light, samples = stored.light(), evaluations.in_order()
    if not light and not samples:
        return None
    pieces, notes = _pieces(directory)
    notes += [*stored.notes, *evaluations.notes]
    if light and all(row.kl is None for row in light):
        notes.append(NO_NUMBERS)
    data: dict[str, Any] = {"scale": SCALE, "notes": notes, "evaluations": evaluations.counts}

    chosen = Shown(pieces, lambda some, packing: _samples(evaluations, some, packing))
    names = {name: at for at, name in enumerate(evaluations.counts)}
    in_files = sorted(samples, key=lambda one: (names[one.evaluation], one.place))
    share = OF_EVALUATIONS if light else 0.98
    chosen.fill(samples, [one.tokens for one in samples], in_files, budget_bytes * share)
    data |= {"samples": chosen.packed(in_files), "rule_of_samples": _said(len(chosen.taken), samples, evaluations)}

    ordered = choice.in_order(light)
    rows = [row for row, _ in ordered]
    shown = Shown(pieces, lambda some, packing: _rows(stored, some, packing))
    shown.fill(rows, [row.tokens for row in rows], light, 0.98 * (budget_bytes - size(data)))
    data |= {"rows": shown.packed(light), "rule": choice.said(ordered[: len(shown.taken)], light), "of": len(light)}
    return Panel(name="samples", title="Samples", explains=EXPLAINS, data=data)


def size(data: Any) -> int:
    """About how many bytes the data takes of the page: compressed, then in base64."""
    return len(zlib.compress(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), 6)) * 4 // 3


class Shown:
    """Rows that a page shows: the first of an order, as many as fit."""

    def __init__(
        self, pieces: TokenPieces | None, read: Callable[[Any, PackedRows], Iterable[tuple[Any, dict[str, Any]]]]
    ):
        """`read` packs some of the things that `fill` is given."""
        self._packing = PackedRows(pieces)
        self._read = read
        self._rows: dict[Any, dict[str, Any]] = {}
        self.taken: list[Any] = []

    def fill(self, ordered: Sequence[Any], tokens: Sequence[int], order: Sequence[Any], budget: float) -> None:
        """Take the first of `ordered` that fit. Each round takes what is left by the bytes a row seen so far.

        `order` is that of the page, in which they are measured: neighbours that are alike pack better.
        """
        guesses = [_PER_ROW + _PER_TOKEN * n for n in tokens]
        rate, took = 1.0, 0
        for _ in range(_ROUNDS):
            begin = end = len(self.taken)
            cost = 0.0
            while end < len(ordered) and (cost := cost + rate * guesses[end]) <= budget - took:
                end += 1
            if begin == end:
                break
            some = ordered[begin:end]
            self._rows |= dict(self._read(some, self._packing))
            self.taken += some
            took = size(self.packed(order))
            rate = took / sum(guesses[:end])
            if took > _FULL * budget:
                break
        while self.taken and took > budget:
            del self.taken[int(_FULL * len(self.taken)) :]
            took = size(self.packed(order))

    def packed(self, order: Sequence[Any]) -> dict[str, Any]:
        """The rows in this order, and the problems that they name."""
        taken = set(self.taken)
        rows = [self._rows[one] for one in order if one in taken]
        places = {at: n for n, at in enumerate(dict.fromkeys(row["problem"] for row in rows))}
        problems = [self._packing.problems[at] for at in places]
        return {"problems": problems, "all": [row | {"problem": places[row["problem"]]} for row in rows]}


def _rows(stored: StoredRows, some: Sequence[Light], packing: PackedRows) -> Iterator[tuple[Light, dict[str, Any]]]:
    named = {row.row: row for row in some}
    for row, scored in stored.read(some):
        yield named[row["row"]], packing.row(row, scored)


def _samples(
    stored: StoredEvaluations, some: Sequence[Sample], packing: PackedRows
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    named = {(one.evaluation, one.place): one for one in some}
    for name, place, row in stored.read(some):
        packed = packing.row(row | {"row": place}, [])
        yield named[name, place], {key: packed[key] for key in _OF_SAMPLE if key in packed} | {"evaluation": name}


def _said(shown: int, samples: Sequence[Sample], evaluations: StoredEvaluations) -> str:
    """The sentence that says which samples of evaluations are shown."""
    if not samples:
        return ""
    of = sum(evaluations.counts.values())
    if shown == of:
        return f"All {of:,} samples of evaluations are shown."
    cut = "" if shown == len(samples) else ", for as many problems, spread evenly, as this page has room for"
    return (
        f"{shown:,} of {of:,} samples of evaluations are shown: of each problem the first that passes and the first "
        f"that fails, in each evaluation{cut}. The Parquet files in evaluation/ hold all."
    )


def _pieces(directory: RunDirectory) -> tuple[TokenPieces | None, list[str]]:
    """The run's tokenizer, from its newest checkpoint or its student; or None, and why in a sentence."""
    model = "the run"
    try:
        recipe = config.stored(directory.path / "recipe.yaml")
        model = recipe.student.path
        return TokenPieces(_tokenizer(directory, recipe)), []
    except Exception as e:  # a tokenizer is read by its own code, and a page can do without
        why = " ".join(str(e).split())[:200]
        return None, [f"Texts are shown without tokens and prompts: the tokenizer of {model} cannot be read ({why})."]


def _tokenizer(directory: RunDirectory, recipe: Recipe) -> Any:
    for _, checkpoint in reversed(directory.checkpoints()):
        if (checkpoint / "model" / "tokenizer.json").is_file():
            return models.tokenizer(str(checkpoint / "model"), None, recipe.student.trust_remote_code)
    path = models.resolve(recipe.student.path, recipe.student.revision)
    return models.tokenizer(path, recipe.student.revision, recipe.student.trust_remote_code)
