"""The columns of the data that are none of ours, kept as JSON: a verifier of one's own may read them.

    a row, the columns that are ours  ->  Leftovers.of()     ->  a JSON object as text, None where nothing is left
                                          Leftovers.notes()  ->  a sentence about the columns that JSON cannot hold

Nested values stay nested. Dates and decimals become text, numbers that are not finite become null. Bytes, and so images
and audio, are left out with the whole column that holds them, and the note names it.
"""

import json
import math
from collections.abc import Collection, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any


class Leftovers:
    def __init__(self, ours: Collection[str]):
        """`ours` are the columns that stand in columns of our own already."""
        self._ours = frozenset(ours)
        self._binary: dict[str, None] = {}  # columns with bytes, in the order in which they were met

    def of(self, row: dict[str, Any]) -> str | None:
        found = {}
        for name, value in row.items():
            if name in self._ours or name in self._binary:
                continue
            try:
                found[name] = _plain(value)
            except _Binary:
                self._binary[name] = None
        if not found:
            return None
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair, which JSON can spell and Arrow cannot hold, stays spelled out.
        return text if text.isascii() or _encodes(text) else json.dumps(found, allow_nan=False)

    def notes(self) -> Iterator[str]:
        if self._binary:
            plural = "s" if len(self._binary) > 1 else ""
            yield (
                f"the column{plural} {', '.join(self._binary)} of the data {'hold' if plural else 'holds'} bytes, "
                "which are not kept"
            )


class _Binary(Exception):
    pass


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple() | set():
            return [_plain(one) for one in value]
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | timedelta():
            return str(value)
        case bytes() | bytearray() | memoryview():
            raise _Binary
        case _:
            return str(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
