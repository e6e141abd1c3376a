"""What an actor of a plan reserves and holds."""

from dataclasses import dataclass

from trd_ray.config import Rest


@dataclass(frozen=True)
class ActorSpec:
    """What each of `replicas` actors (or tasks) reserves from Ray."""

    name: str
    replicas: int
    cpus: float
    gpus: float
    rest: Rest | None = None  # how an engine rests that takes turns with the learner


@dataclass(frozen=True)
class ActorPlan:
    spec: ActorSpec
    memory_gib: dict[str, float]  # what it holds -> how much, on each GPU of a replica or on the host
    host_gib: float  # a replica's; for one on GPUs what it takes to load the model
    gpu_share: float = 0.0  # how much of each of its GPUs it reserves
    note: str = ""
    least_gpu_gib: float = 0.0  # a GPU with less cannot hold it
    first_gib: float = 0.0  # what the first replica takes of the host besides: rank 0 reads the models for all

    @property
    def on_gpu(self) -> bool:
        return self.spec.gpus > 0

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())
