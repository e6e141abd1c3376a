"""The columns of the data that are none of ours, kept as JSON: a verifier of one's own may read them.

    a row, the columns that are ours  ->  Leftovers.of()     ->  a JSON object as text, None where nothing is left
                                          Leftovers.notes()  ->  a sentence about the columns that JSON cannot hold

Nested values stay nested. Dates and decimals become text, numbers that are not finite become null. Bytes, and so images
and audio, are left out with the whole column that holds them, as is what nests too deeply, and the note names it.
"""

import json
import math
from collections.abc import Collection, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

MAX_DEPTH = 100  # of values within values


class Leftovers:
    def __init__(self, ours: Collection[str]):
        """`ours` are the columns that stand in columns of our own already."""
        self._ours = frozenset(ours)
        self._left_out: dict[str, str] = {}  # column -> what it holds, in the order in which they were met

    def of(self, row: dict[str, Any]) -> str | None:
        found = {}
        for name, value in row.items():
            if name in self._ours or name in self._left_out:
                continue
            try:
                found[name] = _plain(value, MAX_DEPTH)
            except _HasNoJson as e:
                self._left_out[name] = str(e)
        if not found:
            return None
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair, which JSON can spell and Arrow cannot hold, stays spelled out.
        return text if text.isascii() or _encodes(text) else json.dumps(found, allow_nan=False)

    def notes(self) -> Iterator[str]:
        for what in dict.fromkeys(self._left_out.values()):
            names = [name for name, why in self._left_out.items() if why == what]
            plural = "s" if len(names) > 1 else ""
            yield (
                f"the column{plural} {', '.join(names)} of the data {'hold' if plural else 'holds'} {what}, "
                "which are not kept"
            )


class _HasNoJson(Exception):
    pass


def _plain(value: Any, depth: int) -> Any:
    if depth < 0:
        raise _HasNoJson(f"values within more than {MAX_DEPTH} others")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(name): _plain(one, depth - 1) for name, one in value.items()}
        case list() | tuple() | set():
            return [_plain(one, depth - 1) for one in value]
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | timedelta():
            return str(value)
        case bytes() | bytearray() | memoryview():
            raise _HasNoJson("bytes")
        case _:
            return str(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
