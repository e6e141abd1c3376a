"""What of an attempt a refinement keeps.

    ids of y_o, ids of y_r  ->  kept_share()  ->  the share of y_o's tokens that stand in y_r in the same order
    rows of a step          ->  edits()       ->  edited and kept share of each, of as many as time allows

Kept are the tokens of a longest common subsequence: what `difflib` aims at, found exactly. The edited share is that of
`trd_ray.stream.edits`, by which refiner.max_edited_share drops rows. The two answer different questions. A refinement
that only leaves things out keeps little, one that only adds keeps everything, and both are edited.

Pure.
"""

import numpy as np
from rapidfuzz.distance import LCSseq

from trd_ray.diagnostics.step_rows import StepRows
from trd_ray.stream.edits import edited_share


def kept_share(y_o: np.ndarray, y_r: np.ndarray) -> float | None:
    """None for an attempt without tokens, of which nothing can be kept."""
    return common_tokens(y_o, y_r) / len(y_o) if len(y_o) else None


def common_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """The length of a longest common subsequence."""
    return LCSseq.similarity(np.asarray(a).tolist(), np.asarray(b).tolist())


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
