"""The ways in which Ray and the engine tell that an engine is gone; in Ray they are siblings, not children of one."""

from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from trd_ray.engine.actor import EngineDied

# An answer that is lost (ObjectLostError, its OwnerDiedError) or a connection that broke: the engine may be alive.
PASSING = (ActorUnavailableError, ObjectLostError)
DEATHS = (
    EngineDied,
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    WorkerCrashedError,
    LocalRayletDiedError,
    *PASSING,
)
