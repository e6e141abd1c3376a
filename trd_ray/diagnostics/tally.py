"""Exact quantiles of any number of float16 values: how often each of the 65,536 of them came.

    values of one step  ->  Tally.add()  ->  Tally.quantile(0.95), the same as NumPy's of all values together

A run of 100 million tokens takes half a megabyte.
"""

import numpy as np

_CODES = 1 << 16


def _order(bits: np.ndarray) -> np.ndarray:
    """Codes that sort as the numbers do: the sign of a float comes first, and the rest of it counts upwards from 0."""
    return np.where(bits >= 0x8000, np.uint16(0xFFFF) - bits, bits + np.uint16(0x8000)).astype(np.uint16)


_BITS = np.arange(_CODES, dtype=np.uint16)
_VALUES = np.empty(_CODES, dtype=np.float16)
_VALUES[_order(_BITS)] = _BITS.view(np.float16)
_VALUES = _VALUES.astype(np.float64)


class Tally:
    def __init__(self):
        self.counts = np.zeros(_CODES, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """`values` are float16 and finite."""
        self.counts += np.bincount(_order(np.ascontiguousarray(values).view(np.uint16)), minlength=_CODES)

    def merge(self, other: "Tally") -> None:
        self.counts += other.counts

    def quantiles(self, shares: list[float]) -> list[float | None]:
        """As `numpy.quantile` interpolates them; None without values."""
        reached = np.cumsum(self.counts)
        total = int(reached[-1])
        if not total:
            return [None] * len(shares)
        found: list[float | None] = []
        for share in shares:
            place = (total - 1) * share
            low, part = int(place), place - int(place)
            at = np.searchsorted(reached, [low, min(low + 1, total - 1)], side="right")
            below, above = _VALUES[at]
            found.append(float(below + (above - below) * part))
        return found
