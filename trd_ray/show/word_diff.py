"""What a refinement left out of its attempt, and what it put in.

    pieces of y_o, pieces of y_r  ->  difference()  ->  [("same", text), ("gone", text), ("new", text), ...]

Pure.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "gone", "new"]
EXACT = 4_000_000  # pairs of pieces up to which none is taken for too common to be compared


def difference(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[Kind, str]]:
    """In reading order; where something was replaced, what is gone comes first."""
    matcher = SequenceMatcher(None, old, new, autojunk=len(old) * len(new) > EXACT)
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal":
            yield "same", "".join(old[a:b])
            continue
        if a < b:
            yield "gone", "".join(old[a:b])
        if c < d:
            yield "new", "".join(new[c:d])
