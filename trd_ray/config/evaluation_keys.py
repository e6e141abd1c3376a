"""The keys of an evaluation: which problems are held out, how they are answered, and when."""

from typing import Annotated, Any, Literal

from pydantic import Field

from trd_ray.config.effects import ANSWERS, NOTHING, SCORES
from trd_ray.config.node import Node
from trd_ray.config.rollout_keys import resolved_length

EVALUATED = ("evaluation/avg", "evaluation/pass")  # metrics of a step after which the student was evaluated


class EvaluationConfig(Node):
    path: Annotated[str | None, SCORES] = Field(
        default="miniature:test",
        description="held-out problems: like data.path, or a benchmark such as aime24; empty: no evaluation",
    )
    split: Annotated[str, SCORES] = "test"
    format: Annotated[Literal["auto", "jsonl", "parquet", "hub"], SCORES] = "auto"
    columns: Annotated[dict[str, str], SCORES] = Field(
        default_factory=dict, description="like data.columns, which fill in what is left out here and is in the file"
    )
    limit: Annotated[int | None, SCORES] = Field(default=None, ge=1)
    arguments: Annotated[dict[str, Any], SCORES] = Field(
        default_factory=dict,
        description="like data.arguments, which stand where the path is the same and this is empty",
    )
    allow_overlap: Annotated[bool, NOTHING] = Field(
        default=False,
        description="held-out problems may also be trained on; the score then says nothing about new ones",
    )
    samples: Annotated[int, SCORES] = Field(default=16, ge=1)
    temperature: Annotated[float, ANSWERS] = Field(default=0.6, ge=0, le=2)
    top_p: Annotated[float, ANSWERS] = Field(default=0.95, gt=0, le=1)
    top_k: Annotated[int, ANSWERS] = Field(default=20, ge=0)
    max_response_tokens: Annotated[int | None, ANSWERS] = Field(
        default=None, ge=1, description="default: 16384 where the context holds it, else what it leaves"
    )
    chat_template_kwargs: Annotated[dict[str, Any], ANSWERS] = Field(
        default_factory=dict, description="empty: the student's"
    )
    before: Annotated[bool, NOTHING] = True
    after: Annotated[bool, NOTHING] = True
    every_steps: Annotated[int | None, NOTHING] = Field(default=None, ge=1, description="evaluate during training too")
    bootstrap: Annotated[int, SCORES] = Field(default=10000, ge=100, description="resamples of problems")

    @property
    def response_tokens(self) -> int:
        return resolved_length(self.max_response_tokens)

    @property
    def in_training(self) -> bool:
        return bool(self.path and (self.before or self.after or self.every_steps))
