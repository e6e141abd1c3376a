"""Numbers of any library as Python's, and those that every tracker can take."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A number of any library as one of Python's."""
    return value.item() if hasattr(value, "item") else value


def finite(value: Any) -> Any:
    """The value, or None for NaN and the infinities, for which JSON has no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are finite numbers: what metrics.jsonl holds, without its nulls, its texts and the step."""
    found = {name: finite(plain(value)) for name, value in metrics.items() if name != "step"}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
