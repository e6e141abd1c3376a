"""What an engine's death looks like: what Ray and the engine raise, whether it still answers, and its last words.

In Ray the errors are siblings, not children of one, so they are listed here.
"""

import asyncio
import mmap
from pathlib import Path

from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from trd_ray.engine.actor import EngineDied, EngineSpec, result

HEALTH_TIMEOUT_S = 120
LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 64 * 1024

# An answer was lost (ObjectLostError, its OwnerDiedError) or a connection broke: the engine may be alive.
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


async def answers(handle: ActorHandle) -> bool:
    """Whether the engine says within HEALTH_TIMEOUT_S that it is well."""
    try:
        await asyncio.wait_for(result(handle.check_health.remote()), HEALTH_TIMEOUT_S)
    except Exception:
        return False
    return True


def log_tail(engine: EngineSpec) -> str:
    """What the engine wrote last since it was last started; earlier starts are above that in the same log."""
    path = Path(engine.log_path)
    if not path.is_file():  # the engine ran on another node
        return f"(its log is {path} on its node)"
    size = path.stat().st_size
    with path.open("rb") as log:
        begin = -1
        if size:
            with mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as content:
                begin = content.rfind(engine.start_id.encode())
        if begin < 0:
            return f"(this start of it wrote nothing to {path})"
        log.seek(max(begin, size - LOG_TAIL_BYTES))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])
