"""The keys of trackers (trd_ray/trackers): where a run shows up in W&B and MLflow, and how long its end waits."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trd_ray.config.effects import NOTHING
from trd_ray.config.node import Node

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


def shown_name(name: str | None) -> str | None:
    """The name, unchanged. Raises ValueError where a tracker could not show it in a line."""
    if name is not None and not (name.strip() and name.isprintable() and len(name) <= 128):
        raise ValueError(f"is shown in a line, so it must have 1 to 128 printable characters, but found {name!r:.200}")
    return name


class TrackingConfig(Node):
    project: Annotated[str | None, NOTHING] = Field(
        default=None,
        description="W&B's project and MLflow's experiment; default: WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME, else "
        "trd-ray",
    )
    name: Annotated[str | None, NOTHING] = Field(
        default=None, description="the run's name there; default: WANDB_NAME and MLFLOW_RUN_NAME, else name"
    )
    group: Annotated[str | None, NOTHING] = Field(
        default=None, description="W&B's group, in MLflow the tag group: for runs that belong together"
    )
    tags: Annotated[list[str], NOTHING] = Field(default_factory=list, description="words by which the run is found")
    sample_rows: Annotated[int, NOTHING] = Field(
        default=4, ge=0, le=64, description="rows of the table of samples, at each step that has one; 0: no table"
    )
    sample_every_steps: Annotated[int, NOTHING] = Field(
        default=10, ge=1, description="the first step has a table of samples, and each so many steps after it"
    )
    deadline_s: Annotated[float, NOTHING] = Field(
        default=60, gt=0, description="longest wait of the run's end for W&B and MLflow, together"
    )

    @field_validator("project", "name", "group")
    @classmethod
    def _is_shown(cls, name: str | None) -> str | None:
        return shown_name(name)

    @field_validator("tags")
    @classmethod
    def _are_shown(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            shown_name(tag)
            if len(tag) > 64:
                raise ValueError(f"has a tag of {len(tag)} characters, but W&B takes 64: shorten {tag[:40]!r}...")
        return tags
