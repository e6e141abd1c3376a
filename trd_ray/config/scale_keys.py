"""The keys of scaling: when a run changes the numbers of its engines by itself (trd_ray/scale/policy.py)."""

from typing import Annotated

from pydantic import Field

from trd_ray.config.effects import NOTHING
from trd_ray.config.node import Node


class ScaleConfig(Node):
    """What decides about engines where a pool's replicas are bounds. `trd scale` needs none of it but the last key."""

    gain: Annotated[float, NOTHING] = Field(
        default=0.05, gt=0, lt=1, description="share of a step's time that a change must be expected to save"
    )
    calm_steps: Annotated[int, NOTHING] = Field(
        default=5, ge=1, description="an engine that no step waited for in so many steps in a row is stopped"
    )
    window_s: Annotated[float, NOTHING] = Field(
        default=30, gt=0, description="shorter steps are judged together, until they have taken so long"
    )
    nodes_timeout_s: Annotated[float, NOTHING] = Field(
        default=600,
        gt=0,
        description="longest wait for a node that Ray's autoscaler was asked for; then the run goes on without it",
    )
