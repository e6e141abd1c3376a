"""What an estimate is made from: a recipe, its models, where engines and ranks sit, and what is known of lengths."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trd_ray.config import Recipe, role_of
from trd_ray.economics.calibration import Measured
from trd_ray.economics.constants import Gpu
from trd_ray.economics.engine_speed import gpu_of
from trd_ray.economics.workload import Lengths, assumed
from trd_ray.models import ModelFacts
from trd_ray.preflight.placement import Placement


@dataclass(frozen=True)
class Case:
    recipe: Recipe  # every length is a number
    student: ModelFacts
    teachers: Mapping[str, ModelFacts]
    placed: Placement
    steps: int | None = None
    held_out: Mapping[str, int] = field(default_factory=dict)  # set -> problems
    prompt_tokens: int | None = None  # of a problem, where the data was read
    measured: Measured | None = None

    @property
    def on_gpu(self) -> bool:
        return any(a.spec.gpus for a in self.placed.actors)

    @property
    def gpu(self) -> tuple[Gpu, bool]:
        """The slowest kind that the run uses, and whether it is assumed."""
        used = {seat.machine for seat in self.placed.seats if seat.gpus}
        machines = [m for i, m in enumerate(self.placed.machines) if m.gpus and (i in used or not used)]
        found = [gpu_of(m.gpu_kind, m.gpu_gib) for m in machines] or [gpu_of("", self.placed.gpu_gib)]
        return min(found, key=lambda one: one[0].memory_bytes_s)

    @property
    def cores(self) -> float:
        known = [m.cpus for m in self.placed.machines if math.isfinite(m.cpus)]
        return sum(known) or 1.0

    @property
    def several_nodes(self) -> bool:
        return len({seat.machine for seat in self.placed.seats_of("learner")}) > 1

    @property
    def lengths(self) -> Lengths:
        r = self.recipe
        if self.measured:
            return replace(
                self.measured.lengths, most_raw=r.sampler.response_tokens, most_refined=r.refiner.response_tokens
            )
        return assumed(
            r.sampler.response_tokens, r.refiner.response_tokens, r.refiner.prompt_tokens,
            reference=r.shows_reference, prompt=self.prompt_tokens,
        )  # fmt: skip

    def count(self, role: str) -> int:
        """How many engines or ranks there are."""
        return sum(a.spec.replicas for a in self.placed.actors if role_of(a.spec.name) == role)

    def gpus_of(self, *roles: str) -> float:
        """On how many GPUs the actors of these roles sit, those that they share counted once."""
        seats = {(seat.machine, gpu) for seat in self.placed.seats if role_of(seat.actor) in roles for gpu in seat.gpus}
        if seats or not self.on_gpu:
            return float(len(seats))
        specs = [a.spec for a in self.placed.actors if role_of(a.spec.name) in roles]
        if self.recipe.takes_turns:  # each reserves a share of a GPU that it has the whole of in its turn
            return float(max((spec.replicas for spec in specs if spec.gpus), default=0))
        return sum(spec.replicas * spec.gpus for spec in specs)

    @property
    def gpus(self) -> float:
        return self.gpus_of(*{role_of(a.spec.name) for a in self.placed.actors})
