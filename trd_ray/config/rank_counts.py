"""How many ranks the learner has: a number, or bounds between which it has as many as the nodes hold.

workers: 8                      always 8
workers: {min: 2, max: 8}       as many as fit at the start; others when nodes go or come
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from trd_ray.config.engine_counts import count_of

_FORM = "a whole number, or {min: 1, max: 8}"


class RankRange(BaseModel):
    """The fewest ranks, and the most."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    min: int
    max: int


def _read(value: Any) -> Any:
    """The value as an int or a RankRange. Raises ValueError, which says what was expected."""
    if isinstance(value, RankRange):
        return value
    if isinstance(value, dict):
        if value.keys() != {"min", "max"}:
            raise ValueError(f"must be {_FORM}, but found {value!r}")
        least, most = value["min"], value["max"]
        whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (least, most))
        if not whole or not 1 <= least <= most:
            raise ValueError(f"must have whole numbers with 1 <= min <= max, but found {value!r}")
        return RankRange(min=least, max=most)
    return count_of(value, _FORM)


RankCount = Annotated[int | RankRange, BeforeValidator(_read)]
