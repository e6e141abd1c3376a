"""The keys of diagnostics: what of a step's trajectories is looked at token by token, and kept beside its rows."""

from typing import Annotated

from pydantic import Field

from trd_ray.config.effects import NOTHING
from trd_ray.config.node import Node


class DiagnosticsConfig(Node):
    """None of it changes what is learned: weights and losses are the same to the last bit, whatever is set here."""

    tokens: Annotated[bool, NOTHING] = Field(
        default=True,
        description="keep KL, both NLLs and the onset mass of every trained token in rows/ (8 bytes a token before "
        "compression); the learner has them anyway",
    )
    rows: Annotated[int, NOTHING] = Field(
        default=0,
        ge=0,
        description="rows of a step whose y_o and y_r are also scored before the update, each under the teacher's "
        "refine and vanilla view, for the paper's Figure 3; they are taken in turn from the cells of the ledger",
    )
    every_steps: Annotated[int, NOTHING] = Field(
        default=10, ge=1, description="diagnostics.rows: in the first step, and then in every one so many steps later"
    )
