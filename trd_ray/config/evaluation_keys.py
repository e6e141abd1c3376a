"""The keys of an evaluation: which problems are held out, how they are answered, and when."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trd_ray.config.effects import ANSWERS, NOTHING, SCORES
from trd_ray.config.node import Node, folder_name
from trd_ray.config.rollout_keys import resolved_length

EVALUATED = ("evaluation/avg", "evaluation/pass")  # metrics of a step after which the student was evaluated


def evaluated(name: str) -> tuple[str, str]:
    """The metrics of a set of evaluation.sets, Avg@k and Pass@k; of evaluation.path where the name is empty."""
    return (f"evaluation/{name}/avg", f"evaluation/{name}/pass") if name else EVALUATED


def lost(name: str) -> str:
    """The metric of a guard: 1 where it is below what it was before training, clear of chance, else 0."""
    return f"evaluation/{name}/lost"


def is_lost_guard(metric: str) -> bool:
    """Whether it is such a metric; the name of a set may hold the word too."""
    return metric.startswith("evaluation/") and metric.endswith("/lost")


class EvaluationSet(Node):
    """One more set of held-out problems. How they are answered stands in `evaluation`, but for the temperature."""

    path: Annotated[str, SCORES] = Field(description="like evaluation.path")
    split: Annotated[str, SCORES] = "test"
    format: Annotated[Literal["auto", "jsonl", "parquet", "hub"], SCORES] = "auto"
    columns: Annotated[dict[str, str], SCORES] = Field(default_factory=dict, description="like evaluation.columns")
    limit: Annotated[int | None, SCORES] = Field(default=None, ge=1)
    arguments: Annotated[dict[str, Any], SCORES] = Field(default_factory=dict, description="like evaluation.arguments")
    samples: Annotated[int | None, SCORES] = Field(default=None, ge=1, description="default: evaluation.samples")
    temperature: Annotated[float | None, ANSWERS] = Field(
        default=None, ge=0, le=2, description="default: evaluation.temperature; 0 with samples 1 is the greedy answer"
    )
    guard: Annotated[bool, NOTHING] = Field(
        default=False,
        description="what the student could do before and must not lose: a score below that is told, and a checkpoint "
        "with one is not the best",
    )


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
    sets: Annotated[dict[str, EvaluationSet], SCORES] = Field(
        default_factory=dict,
        description="more held-out problems by name, as {old: {path: old.jsonl, guard: true}}: evaluation/old/avg",
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
        return bool(self.names and (self.before or self.after or self.every_steps))

    @property
    def names(self) -> list[str]:
        """The sets that are evaluated; "" is that of evaluation.path."""
        return [*([""] if self.path else []), *self.sets]

    def of(self, name: str) -> "EvaluationConfig":
        """The keys of one set, as if it were the only one."""
        if not name:
            return self.model_copy(update={"sets": {}})
        own = self.sets[name]
        found = {key: getattr(own, key) for key in type(own).model_fields.keys() & type(self).model_fields.keys()}
        found["samples"] = own.samples or self.samples
        found["temperature"] = self.temperature if own.temperature is None else own.temperature
        return self.model_copy(update=found | {"sets": {}})

    @field_validator("sets")
    @classmethod
    def _names_are_plain(cls, sets: dict[str, EvaluationSet]) -> dict[str, EvaluationSet]:
        for name in sets:
            if folder_name(name) in ("avg", "pass"):
                raise ValueError(f"must not name a set {name!r}, which is a metric's name: give it another")
        return sets
