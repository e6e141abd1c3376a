"""Whether a recipe's own functions can judge its problems, found out before anything starts.

    recipe.verify, the columns of some rows, one row  ->  require_functions()  ->  a line for each function: its shape
                                                                                  UserError: what does not fit

Each function is imported in the process that will call it, never in this one, and called once, on a response that is
the row's own reference or answer. What it says of that response is not judged here: `trd check` does that.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from trd_ray.config import VerifyConfig, did_you_mean, own_parts
from trd_ray.config.imported_files import among, imported
from trd_ray.errors import BadRow, Faults, UserError
from trd_ray.verify.chosen import Chosen, judge_of
from trd_ray.verify.own.call import COLUMNS, opened, unfilled
from trd_ray.verify.own.own_verifier import OwnVerifier
from trd_ray.verify.own.shape import CallShape
from trd_ray.verify.verdict import IDS

ROWS_TO_FIT = 1000  # of each function, whose columns it is compared with


def require_functions(config: VerifyConfig, rows: Iterable[dict[str, Any]], key: str = "data.path") -> list[str]:
    """A line for each function, as `--dry-run` prints it. `rows` are of rows.PROBLEM, from `key` of the recipe.

    Raises UserError for a function that is not there, that cannot be called, or whose parameters no column fills, and
    for a row whose column names no verifier.
    """
    if not config.chosen:
        return []
    faults = Faults()
    lines: list[str] = []
    shared: dict[str, list[dict[str, Any]]] = {name: [] for name in config.chosen}
    with faults:
        _share_out(config, rows, key, shared)
    verify = Chosen(config)
    try:
        for name, one in verify.own().items():
            with faults:
                lines += _fits(config, one, shared[name], key)
    finally:
        verify.close()
    faults.require_none()
    return lines


def _fits(config: VerifyConfig, one: OwnVerifier, rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    shape = one.shape
    place, _ = own_parts(one.named.function)
    text = config.sources.get(place)
    told = f"{one.called}: {shape}" + (_texts_told(place, config) if text else "")
    if not rows:
        return [told]
    extra = {name: None for row in rows for name in opened(row)["extra"]}
    _require_filled(one, shape, list(extra), config, key)
    return [told, *_tried(config, one, shape, rows[0])]


def _texts_told(place: str, config: VerifyConfig) -> str:
    """What says which code it is: of its file, and of the files that travel with it."""
    others = imported(config.sources[place], *among(config.sources, Path(place).parent))
    texts = [config.sources[place], *(others[name] for name in sorted(others) if name != Path(place).name)]
    told = f", sha256 {sha256(chr(0).join(texts).encode()).hexdigest()[:8]}"
    return f"{told}, with {', '.join(sorted(others))}" if others else told


def _require_filled(one: OwnVerifier, shape: CallShape, extra: list[str], config: VerifyConfig, key: str) -> None:
    lacking = unfilled(shape, extra, config.columns)
    if not lacking:
        return
    there = [*COLUMNS, *extra, *config.columns]
    raise UserError(
        f"{one.called} takes {lacking[0]}, which no column of {key} fills{did_you_mean(lacking[0], there)}: give the "
        f"data that column, set verify.columns.{lacking[0]}=COLUMN or verify.arguments.{lacking[0]}=VALUE, or give the "
        "parameter a default"
    )


def _tried(config: VerifyConfig, one: OwnVerifier, shape: CallShape, row: dict[str, Any]) -> list[str]:
    """What one call tells: a wrong return and a wrong guess are refused, an error is a line for whoever starts."""
    response = row.get("reference") or row.get("answer") or ""
    row = row | {IDS: {response: response.encode()}}  # a byte stands in for a token: no tokenizer is loaded here
    reply = one.reply(response, row)
    if "wrong" in reply:
        raise UserError(f"{one.called} {reply['wrong']}, when it was called on problem {row['problem_id']}")
    if "score" in reply:
        return []
    why = one.failing(reply)
    as_what = "messages" if shape.messages else "text"
    other = "text" if shape.messages else "messages"
    if "raised" in reply and "score" in _as(other, config, one, response, row):
        raise UserError(
            f"{one.called} was given completions as {as_what}, and {why}, but it can judge them as {other}: set "
            f"verify.completions={other}"
        )
    return [f"{one.called}: {why}, when it was called on the reference or answer of problem {row['problem_id']}"]


def _as(completions: str, config: VerifyConfig, one: OwnVerifier, response: str, row: dict[str, Any]) -> dict[str, Any]:
    """What the function says where completions have the other form."""
    changed = config.model_copy(update={"completions": completions})
    other = OwnVerifier(changed, one.named)
    try:
        return other.reply(response, row)
    finally:
        other.close()


def _share_out(
    config: VerifyConfig, rows: Iterable[dict[str, Any]], key: str, shared: dict[str, list[dict[str, Any]]]
) -> None:
    """Give each verifier the first rows that it judges."""
    for row in rows:
        try:
            name = judge_of(config, row)
        except BadRow as e:
            raise UserError(
                f"problem {row['problem_id']} of {key}: {e}: correct that column, or name a verifier for the value"
            ) from e
        judging = [] if name is None and config.has_usual_rows else list(shared) if name is None else [name]
        for one in judging:
            if one in shared and len(shared[one]) < ROWS_TO_FIT:
                shared[one].append(row)
