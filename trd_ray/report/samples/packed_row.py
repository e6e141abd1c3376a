"""One row as the page's script reads it: texts, a letter a token for its length, a letter a token for each number.

    a stored row, its scored lists  ->  PackedRows.row  ->  a dict of JSON

    text      "so \\boxed{4}<|end|>"      lengths    "%#,#$*"      kl    "#B9##M"

Letters pack best: deflate gives each about as many bits as it says. A number's letter is its place on a scale of even
steps of the logarithm (`SCALE`), which is fine enough for a colour and for two digits. Means are written as numbers.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray.report.samples.choice import cell_of
from trd_ray.report.samples.token_pieces import TokenPieces
from trd_ray.rows import part

_FIRST = 35  # "#"; the letters after it need no escape in JSON, but for the backslash
_LETTERS = np.array([c for c in range(_FIRST, 127) if chr(c) != "\\"], np.uint8)
LETTERS = _LETTERS.tobytes().decode()
NOT_FINITE = " "
_LONG = len(LETTERS) - 1  # the letter of a length that stands in `long`

# A level k > 0 stands for lowest * ratio ** (k - 1); 0 for less than the lowest; the last for itself and more.
SCALE = {"lowest": 1e-3, "ratio": 1.125, "letters": LETTERS, "not_finite": NOT_FINITE}
MAX_TOKENS = 16_384  # a longer text loses its middle
MAX_CHARS = 200_000  # the same of a text without tokens

_FACTS = ("finish", "version", "passed", "score", "detail", "feedback")
_OF_ROW = ("row", "step", "epoch", "sample_index", "source", "teacher", "trajectory", "train", "dropped_because")
_OF_ROW += ("fault", "refine_cut_tokens", "teacher_cut_tokens", "refine_candidates", "refine_candidates_passed")
_OF_ROW += ("refine_edited_share",)
_OF_Y = ("ids", "text", "extracted", *_FACTS, "parts")
COLUMNS = [*_OF_ROW, "problem_id", "problem", "answer", "reference", "turns", "scored"]
# The views: what y_o and y_r were sampled from, and the contexts of teacher and student in the loss.
_VIEWS = {"student": "student_prompt_ids", "refine": "refine_prompt_ids", "teacher": "teacher_ids"}
_VIEWS |= {"trained": "student_ids"}
COLUMNS += _VIEWS.values()
COLUMNS += [f"{y}.{name}" for y in ("y_o", "y_r") for name in _OF_Y]


class PackedRows:
    """Packs the rows of one page, whose problems are written once each. Without pieces there is text alone."""

    def __init__(self, pieces: TokenPieces | None):
        self._pieces = pieces
        self.problems: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def row(self, row: dict[str, Any], scored: list[dict[str, Any]]) -> dict[str, Any]:
        """`row` has COLUMNS, a trajectory as a dict or None; `scored` is of `scored_lists`."""
        given = {name: _number(row.get(name)) for name in _OF_ROW}
        packed = {name: value for name, value in given.items() if value is not None and value != ""}
        packed["problem"] = self._problem(row)
        packed["cell"] = cell_of(part(row, "y_o", "passed"), part(row, "y_r", "passed"), row.get("fault"))
        known = {name: text for name in ("problem", "reference") if len(text := row.get(name) or "") <= MAX_CHARS}
        for y in ("y_o", "y_r"):
            if row.get(y) and (row[y].get("ids") is not None or row[y].get("text") is not None):
                packed[y], known[y] = self._trajectory(row[y])
        kept = [_packed_scores(one) for one in scored]
        packed |= {"scored": kept} if kept else {}
        if self._pieces and (views := self._views(row, known)):
            packed["views"] = views
        return packed

    def _problem(self, row: dict[str, Any]) -> int:
        said = json.loads(row["turns"]) if row.get("turns") else []
        texts = {name: row.get(name) or "" for name in ("problem", "answer", "reference")}
        problem = {"id": row["problem_id"]} | {n: _cut_text(text)[0] for n, text in texts.items() if text}
        problem |= {"turns": [{k: str(one.get(k) or "") for k in ("role", "content")} for one in said]} if said else {}
        key = json.dumps(problem)
        if key not in self._places:
            self._places[key] = len(self.problems)
            self.problems.append(problem)
        return self._places[key]

    def _trajectory(self, y: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The trajectory, and its text as a prompt repeats it: without special tokens; "" where it lost its middle."""
        packed = {name: value for name in _FACTS if (value := _number(y.get(name))) not in (None, "")}
        if parts := y.get("parts"):
            packed["parts"] = [{"name": one["name"], "score": _number(one["score"])} for one in parts]
        ids, text = y.get("ids"), y.get("text") or ""
        if extracted := y.get("extracted"):
            # A program is found in the text, where it can be read.
            packed["extracted"] = extracted if len(extracted) <= 300 or extracted not in text else None
        if ids is not None:
            packed["tokens"] = len(ids)
        if self._pieces is None or ids is None or not len(ids):
            packed["text"], cut = _cut_text(text)
            return packed | cut, ""
        at = _kept(len(ids))
        pieces = self._pieces.of(ids[at].tolist())
        lengths = [_utf16(piece) for piece in pieces]
        packed["text"] = "".join(pieces)
        packed["lengths"] = "".join(LETTERS[min(n, _LONG)] for n in lengths)
        if long := [n for n in lengths if n >= _LONG]:
            packed["long"] = long
        special = np.flatnonzero(np.isin(ids[at], list(self._pieces.special_ids))).tolist()
        if special:
            packed["special"] = special
        if len(ids) > len(at):
            packed["gap"] = {"at": MAX_TOKENS // 2, "tokens": len(ids) - len(at)}
            return packed, ""
        for place in special:
            pieces[place] = ""
        return packed, "".join(pieces)

    def _views(self, row: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
        """The prompts as sent: text and special tokens in turn. A text that the row has is named, not repeated."""
        assert self._pieces
        found: dict[str, Any] = {}
        seen: dict[bytes, str] = {}
        for name, column in _VIEWS.items():
            ids = row.get(column)
            if ids is None or not len(ids):
                continue
            key = np.asarray(ids, np.int32).tobytes()
            if key in seen:
                found[name] = seen[key]  # the same ids as that view
                continue
            seen[key] = name
            runs = self._pieces.runs(ids[: 4 * MAX_TOKENS].tolist())
            found[name] = [run if n % 2 else list(_named(run, known)) for n, run in enumerate(runs)]
        return found


def scored_lists(column: pa.ChunkedArray) -> Iterator[list[dict[str, Any]]]:
    """The `scored` of each row, whose lists of numbers are NumPy arrays of float64; [] for null."""
    names = ("kl", "student_nll", "teacher_nll")
    for chunk in column.chunks:
        entries = chunk.values
        lists = {name: entries.field(name) for name in names}
        numbers = {name: one.values.to_numpy(zero_copy_only=False) for name, one in lists.items()}
        ends = {name: one.offsets.to_numpy() for name, one in lists.items()}
        plain = {name: entries.field(name) for name in ("trajectory", "view", "trained")}
        offsets = chunk.offsets.to_numpy()
        for n in range(len(chunk)):
            yield [
                {name: one[k].as_py() for name, one in plain.items()}
                | {name: numbers[name][ends[name][k] : ends[name][k + 1]].astype(np.float64) for name in names}
                for k in range(offsets[n], offsets[n + 1] if chunk[n].is_valid else offsets[n])
            ]


def trained_kl(scored: list[dict[str, Any]]) -> float | None:
    """The mean KL of the trained trajectory, or of the first one where none trained. None for none, or none finite."""
    one = next((one for one in scored if one["trained"]), scored[0] if scored else None)
    return _mean(one["kl"]) if one else None


def quantised(values: np.ndarray) -> str:
    """A letter of SCALE for each number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.rint(np.log(np.maximum(values, 0) / SCALE["lowest"]) / math.log(SCALE["ratio"])) + 1
    finite = np.isfinite(values)
    level = np.clip(np.where(finite, level, 0), 0, len(LETTERS) - 1).astype(np.int64)
    return np.where(finite, _LETTERS[level], ord(NOT_FINITE)).astype(np.uint8).tobytes().decode()


def _packed_scores(one: dict[str, Any]) -> dict[str, Any]:
    names = {"kl": "kl", "student": "student_nll", "teacher": "teacher_nll"}
    lists = {name: one[of] for name, of in names.items()}
    kept = {name: values[_kept(len(values))] for name, values in lists.items()}
    return (
        {"y": one["trajectory"], "view": one["view"], "trained": bool(one["trained"])}
        | {name: quantised(values) for name, values in kept.items()}
        | {"means": {name: _number(_mean(values)) for name, values in lists.items()}}
        | {"highest": _number(float(np.nanmax(lists["kl"], initial=0.0)))}
    )


def _named(text: str, known: dict[str, str]) -> Iterator[Any]:
    """The text in parts: a text, or [the name of a known text, how many of its UTF-16 units from the start]."""
    for name, whole in sorted(known.items(), key=lambda one: -len(one[1])):
        start = whole[:60]
        at = text.find(start) if len(start) == 60 else -1
        if at < 0:
            continue
        end = _common(text[at:], whole)
        yield from _named(text[:at], known)
        yield [name, _utf16(whole[:end])]
        yield from _named(text[at + end :], {n: one for n, one in known.items() if n != name})
        return
    if text:
        yield text


def _common(a: str, b: str) -> int:
    """How many characters the texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _kept(n: int) -> np.ndarray:
    half = MAX_TOKENS // 2
    return np.arange(n) if n <= MAX_TOKENS else np.concatenate([np.arange(half), np.arange(n - half, n)])


def _cut_text(text: str) -> tuple[str, dict[str, Any]]:
    """A text that lost its middle where it is too long, and what the page says of it."""
    if len(text) <= MAX_CHARS:
        return text, {}
    half = MAX_CHARS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}", {"cut": left_out}


def _utf16(text: str) -> int:
    """The length of the text in a script of the page, which counts UTF-16 units."""
    return len(text) if text.isascii() else len(text) + sum(c > "\uffff" for c in text)


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    numbers = np.asarray(values)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if len(finite) else None


def _number(value: Any) -> Any:
    """A float with four digits, or None for one that is not finite; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
