"""What a function returned, as plain data that can cross a pipe.

    float, bool, None, tensor, dict, Verdict, a list of one of them  ->  read()  ->  a reply, or WrongReturn

    {"score": 0.5, "passed": null, "feedback": "...", "extracted": "..."}    score null: the function gave none

This module runs where the function is, so it imports nothing but the standard library.
"""

import math
import unicodedata
from decimal import Decimal
from fractions import Fraction
from typing import Any

SCORES = ("score", "scores", "reward", "rewards")  # the first of these that a dict has is its score
EXTRACTED = ("extracted", "pred")
MAX_FEEDBACK_CHARS = 2000
MAX_DETAIL_CHARS = 300
MAX_EXTRACTED_CHARS = 8000
WANTED = "a number, true or false, None, a dict with score, or a Verdict"


class WrongReturn(Exception):
    """A value that is no score; the message says what it is and what is wanted."""


def read(value: Any, batched: bool) -> dict[str, Any]:
    """The reply for what was returned for one response. Raises WrongReturn."""
    tensor = hasattr(value, "dtype")
    value = _plain(value)
    if (batched and not isinstance(value, dict)) or (tensor and isinstance(value, list)):
        value = _only(value)
    return _reply(value, batched)


def _only(value: Any) -> Any:
    """The entry of a list of one."""
    if not isinstance(value, list | tuple):
        raise WrongReturn(f"gave {_shown(value)} where a list with one score for each completion is wanted")
    if len(value) != 1:
        raise WrongReturn(f"gave {len(value)} scores for 1 completion")
    return _plain(value[0])


def _reply(value: Any, batched: bool) -> dict[str, Any]:
    reply: dict[str, Any] = {"score": None, "passed": None, "feedback": "", "detail": "", "extracted": ""}
    if isinstance(value, dict):
        return reply | _of_dict(value, batched)
    if hasattr(value, "passed") and hasattr(value, "score"):  # a Verdict, or what looks like one
        value = {name: getattr(value, name) for name in reply if hasattr(value, name)}
        return reply | _of_dict(value, batched)
    return reply | {"score": _number(value)}


def _of_dict(value: dict[Any, Any], batched: bool) -> dict[str, Any]:
    def entry(name: str) -> Any:
        found = _plain(value.get(name))
        return _only(found) if batched and isinstance(found, list | tuple) else found

    name = next((name for name in SCORES if name in value), None)
    passed = entry("passed")
    if name is None and not isinstance(passed, bool):
        keys = ", ".join(map(str, value)) or "nothing"
        raise WrongReturn(f"gave a dict with {keys}, where {' or '.join(SCORES)} is wanted")
    extracted = next((entry(name) for name in EXTRACTED if value.get(name) is not None), "")
    return {
        "score": _number(passed if name is None else entry(name)),
        "passed": passed if isinstance(passed, bool) else None,
        "feedback": _text(entry("feedback"), MAX_FEEDBACK_CHARS),
        "detail": _text(entry("detail"), MAX_DETAIL_CHARS),
        "extracted": _text(extracted, MAX_EXTRACTED_CHARS),
    }


def _number(value: Any) -> float | None:
    """A score, None for none. A batch of one is unpacked by then, so a list is wrong here."""
    if value is None:
        return None
    if not isinstance(value, bool | int | float | Fraction | Decimal):
        raise WrongReturn(f"gave {_shown(value)} where {WANTED} is wanted")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise WrongReturn(f"gave the score {number}, which has no mean: let it give a finite one")
    return None if math.isnan(number) else number  # TRL writes none as nan


def _plain(value: Any) -> Any:
    """A tensor or an array, of any library, as numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value


def printable(text: str) -> str:
    """Text that any file and terminal takes: half a surrogate pair and control characters become U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)


def _text(value: Any, most: int) -> str:
    """Printable text, no longer than so many characters."""
    if value is None:
        return ""
    text = str(value)
    return printable(text if len(text) <= most else f"{text[: most - 1]}…")


def _shown(value: Any) -> str:
    return f"a {type(value).__name__} ({_text(repr(value), 80)})"
