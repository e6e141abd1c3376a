"""How far a refinement strays from the attempt, and where.

    ids of y_o, ids of y_r  ->  edited_share()   ->  0 (the same) to 1 (nothing in common)
                            ->  edited_places()  ->  the places in y_r at which it goes another way than y_o

The share is Levenshtein's distance (insertions, deletions and substitutions of tokens) divided by the length of the
longer sequence. So what is left out counts as edited too: a refinement of a tenth of the length has at least 0.9.

Pure.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def edited_share(y_o: Sequence[int] | np.ndarray, y_r: Sequence[int] | np.ndarray) -> float:
    shorter, longer = sorted((np.asarray(y_o).tolist(), np.asarray(y_r).tolist()), key=len)
    return distance(longer, shorter) / len(longer) if longer else 0.0


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein's distance, a column of the table at a time as the bits of one integer.

    H. Hyyrö, "Explaining and Extending the Bit-parallel Approximate String Matching Algorithm of Myers", 2001. For two
    sequences of 16,384 tokens it takes half a second where the table of numbers takes minutes. Fastest with the longer
    one first. What both begin and end with costs nothing: a refinement keeps what was right before the first mistake.
    """
    a, b = _without_common_ends(a, b)
    if not a or not b:
        return len(a) + len(b)
    matches: defaultdict[int, int] = defaultdict(int)  # token -> the places of `a` that hold it
    for place, token in enumerate(a):
        matches[token] |= 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, found = every, 0, len(a)  # where the column rises and falls from row to row, and its last number
    for token in b:
        equal = matches.get(token, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        across_up = falls | ~(diagonal | rises) & every
        across_down = diagonal & rises
        found += bool(across_up & last) - bool(across_down & last)
        across_up = across_up << 1 & every | 1
        across_down = across_down << 1 & every
        rises = across_down | ~(diagonal | across_up) & every
        falls = across_up & diagonal
    return found


def edited_places(y_o: Sequence[int] | np.ndarray, y_r: Sequence[int] | np.ndarray) -> np.ndarray:
    """The places, in order, of the tokens of y_r that a longest common subsequence with y_o leaves over.

    Where y_r leaves something out, and has nothing of its own in its place, the token after it counts: there it goes
    another way.

    The table is that of M. Crochemore et al., "A fast and practical bit-vector algorithm for the Longest Common
    Subsequence problem", 2001: a column of bits for each token of y_r, read backwards. It takes as many numbers of
    len(y_o) bits as y_r has tokens: 32 MB for two of 16,384.
    """
    a, b = np.asarray(y_o).tolist(), np.asarray(y_r).tolist()
    begin = _common(a, b)
    a, b = _without_common_ends(a, b)
    matches: defaultdict[int, int] = defaultdict(int)
    for place, token in enumerate(a):
        matches[token] |= 1 << place
    every = (1 << len(a)) - 1
    column, columns = every, []  # a bit is 0 where one more token of y_o makes the common subsequence longer
    for token in b:
        both = column & matches.get(token, 0)
        column = (column + both | column - both) & every
        columns.append(column)
    own, after_a_gap = set(), set()
    i, j = len(a), len(b)
    while i and j:
        if columns[j - 1] >> i - 1 & 1:
            i -= 1
            after_a_gap.add(j)
        else:
            j -= 1
            if j and not columns[j - 1] >> i - 1 & 1:
                own.add(j)
            else:
                i -= 1
    own |= set(range(j))
    after_a_gap |= {0} if i else set()
    found = own | {place for place in after_a_gap if place - 1 not in own}
    places = np.array(sorted(found), np.int32) + begin
    return places[places < len(y_r)]


def _without_common_ends(a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
    begin = _common(a, b)
    a, b = a[begin:], b[begin:]
    end = _common(a[::-1], b[::-1])
    return a[: len(a) - end], b[: len(b) - end]


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
