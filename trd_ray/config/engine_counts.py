"""How many engines a pool has: a number, or bounds between which the run decides (trd_ray/scale).

replicas: 4                        always 4
replicas: {min: 1, max: 4}         from 1 to 4, and 1 at the start
replicas: {min: 1, max: 4, start: 2}
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

FORM = "a whole number, or {min: 1, max: 4}"


class EngineRange(BaseModel):
    """The fewest engines, the most, and how many there are at the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    min: int
    max: int
    start: int


def _read(value: Any) -> Any:
    """The value as an int or an EngineRange. Raises ValueError, which says what was expected."""
    if isinstance(value, EngineRange):
        return value
    if isinstance(value, dict):
        unknown = sorted(map(str, value.keys() - {"min", "max", "start"}))
        if unknown or "max" not in value:
            what = f"there is no key {unknown[0]} in it" if unknown else "max is missing"
            raise ValueError(f"must be {FORM}, but {what}: found {value!r}")
        least = value.get("min", 1)
        bounds = {"min": least, "max": value["max"], "start": value.get("start", least)}
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in bounds.values()):
            raise ValueError(f"must hold whole numbers, but found {value!r}")
        if not 1 <= bounds["min"] <= bounds["start"] <= bounds["max"]:
            raise ValueError(f"must have 1 <= min <= start <= max, but found {value!r}")
        return EngineRange(**bounds)
    return count_of(value, FORM)


def count_of(value: Any, form: str) -> int:
    """A whole number of at least 1. Raises ValueError, which says in which `form` it must be."""
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        count = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"must be {form}, but found {value!r}") from None
    if count < 1:
        raise ValueError(f"must be at least 1, but found {value!r}")
    return count


EngineCount = Annotated[int | EngineRange, BeforeValidator(_read)]
