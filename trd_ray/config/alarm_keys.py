"""The keys of alarms, and the names that they may hold: what each alarm means stands in trd_ray/alarms."""

from typing import Annotated

from pydantic import Field, field_validator

from trd_ray.config.close_words import did_you_mean
from trd_ray.config.effects import NOTHING
from trd_ray.config.node import Node

ALARMS = (
    *("truncated_y_o", "truncated_y_r", "no_answer_y_o", "no_answer_y_r", "length_explosion", "views_cut"),
    *("none_passed_y_o", "none_passed_y_r", "all_passed", "refinement_harms", "refinement_leaks", "refinement_longer"),
    *("all_dropped", "bad_rows", "verifier_deadlines"),
    *("not_finite", "kl_spike", "kl_rises", "gradient_spike", "entropy_collapse", "engine_gap", "staleness_at_bound"),
    *("held_out_falls", "guard_lost"),
    *("learner_waits", "engines_wait", "verifier_slow", "overhead", "throughput_fell", "slow_rank", "slow_checkpoint"),
    *("engine_restarts", "learner_restarts", "spilling", "disk_nearly_full", "no_progress"),
)


class AlarmsConfig(Node):
    silent: Annotated[list[str], NOTHING] = Field(
        default_factory=list, description="names of alarms that nobody is told of; their metric alarm/NAME stays"
    )
    stop_on: Annotated[list[str], NOTHING] = Field(
        default_factory=list,
        description="names of alarms that stop the run where they begin, as `trd stop` does, with a checkpoint",
    )

    @field_validator("silent", "stop_on")
    @classmethod
    def _are_alarms(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ALARMS:
                raise ValueError(f"has {name!r}, which is no alarm{did_you_mean(name, list(ALARMS))}")
        return names
