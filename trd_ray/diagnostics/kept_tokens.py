"""What of an attempt a refinement keeps.

    ids of y_o, ids of y_r  ->  kept_share()  ->  the share of y_o's tokens that stand in y_r in the same order
    rows of a step          ->  edits()       ->  edited and kept share of each, of as many as time allows

Kept are the tokens of a longest common subsequence: what `difflib` aims at, found exactly. The edited share is that of
`trd_ray.stream.edits`, by which refiner.max_edited_share drops rows. The two answer different questions. A refinement
that only leaves things out keeps little, one that only adds keeps everything, and both are edited.

Pure.
"""

from collections import defaultdict

import numpy as np

from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.stream.edits import edited_share


def kept_share(y_o: np.ndarray, y_r: np.ndarray) -> float | None:
    """None for an attempt without tokens, of which nothing can be kept."""
    return common_tokens(np.asarray(y_o), np.asarray(y_r)) / len(y_o) if len(y_o) else None


def common_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """The length of a longest common subsequence, a column of the table at a time as the bits of one integer.

    H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004. What both begin and end with costs nothing.
    """
    begin = _common(a, b)
    a, b = a[begin:], b[begin:]
    end = _common(a[::-1], b[::-1])
    longer, shorter = sorted((a[: len(a) - end].tolist(), b[: len(b) - end].tolist()), key=len, reverse=True)
    matches: defaultdict[int, int] = defaultdict(int)  # token -> the places of the longer that hold it
    for place, token in enumerate(longer):
        matches[token] |= 1 << place
    every = (1 << len(longer)) - 1
    unmatched = every  # its zeros are the places at which the subsequence grows
    for token in shorter:
        held = unmatched & matches.get(token, 0)
        unmatched = (unmatched + held | unmatched - held) & every
    return begin + end + len(longer) - unmatched.bit_count()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    shortest = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(unequal[0]) if len(unequal) else shortest


def edits(rows: StepRows, most_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The edited and the kept share of each row, NaN where they are not known.

    They are of rows with y_o and y_r, in their order until `most_pairs` pairs of tokens are compared. The row that
    passes that number still counts. An edited share that the row has already is taken as it is.
    """
    edited_B = np.where(rows.sound_B, rows.numbers("refine_edited_share"), np.nan)
    kept_B = np.full(rows.count, np.nan)
    pairs = 0
    for row in np.flatnonzero(rows.sound_B & rows.y_o.there_B & rows.y_r.there_B):
        if pairs > most_pairs:
            break
        y_o, y_r = rows.y_o[row], rows.y_r[row]
        pairs += len(y_o) * len(y_r)
        if np.isnan(edited_B[row]):
            edited_B[row] = edited_share(y_o, y_r)
        kept = kept_share(y_o, y_r)
        kept_B[row] = np.nan if kept is None else kept
    return edited_B, kept_B
