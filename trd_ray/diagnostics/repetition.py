"""How much of a text stood in it before: the share of its runs of 4 tokens that are repeats.

    ids of the responses  ->  repeated_shares()  ->  1 - different runs / all runs, for each response

That is seq-rep-4 (see assumptions.py). A response of fewer than 4 tokens has no run, and its share is NaN.

Pure.
"""

import numpy as np

from trd_ray.diagnostics.assumptions import REPEATED_TOKENS
from trd_ray.diagnostics.step_rows import Lists

# Runs are compared by 44 bits of a hash. In one of a hundred thousand responses of 16,384 tokens, two that differ are
# taken for equal by chance.
_HASH_BITS = 44
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64
)


def repeated_shares(lists: Lists, size: int = REPEATED_TOKENS) -> np.ndarray:
    rows = len(lists.lengths_B)
    runs_B = np.maximum(lists.lengths_B - size + 1, 0)
    if not runs_B.any():
        return np.full(rows, np.nan)
    ids_N = lists.values_N.astype(np.uint64) + np.uint64(1)
    hash_N = np.zeros(len(ids_N) - size + 1, dtype=np.uint64)
    for i in range(size):
        mixed = ids_N[i : len(ids_N) - size + 1 + i] * _MULTIPLIERS[i]
        hash_N = _stirred(hash_N ^ mixed)
    row_N = lists.row_N
    whole_N = row_N[: len(hash_N)] == row_N[size - 1 :]  # a run lies in one response
    of_row = row_N[: len(hash_N)][whole_N].astype(np.uint64) << np.uint64(_HASH_BITS)
    keys = np.sort(of_row | hash_N[whole_N] >> np.uint64(64 - _HASH_BITS))
    new = np.concatenate([[True], keys[1:] != keys[:-1]])
    different_B = np.bincount((keys[new] >> np.uint64(_HASH_BITS)).astype(np.int64), minlength=rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(runs_B > 0, 1 - different_B / runs_B, np.nan)


def _stirred(hash_N: np.ndarray) -> np.ndarray:
    """So that the order of the tokens counts, and each bit of one moves many (the finaliser of SplitMix64)."""
    hash_N = (hash_N ^ hash_N >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    return hash_N ^ hash_N >> np.uint64(27)
