"""The keys that name code of the user's own which the driver of a run calls: a metric function and callbacks."""

from typing import Annotated

from pydantic import Field, field_validator

from trd_ray.config.effects import NOTHING
from trd_ray.config.node import Node
from trd_ray.own_code import FORM, checked


class MetricsConfig(Node):
    function: Annotated[str | None, NOTHING] = Field(
        default=None,
        description=f"a function of your own, as {FORM}: it gets a step's rows and returns a dict of numbers, which "
        "become the step's metrics own/NAME",
    )

    @field_validator("function")
    @classmethod
    def _names_code(cls, function: str | None) -> str | None:
        return checked(function)
