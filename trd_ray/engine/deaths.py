"""What an engine's death looks like: what Ray and the engine raise, whether it still answers, and its last words.

handle --pulse, every PULSE_EVERY_S--> death_of() returns why, once it is dead, or nothing is seen of it for so long
"""

import asyncio
import contextlib
import mmap
import time
from collections.abc import Callable
from pathlib import Path

from ray.actor import ActorHandle

from trd_ray.ending import has_process
from trd_ray.engine.actor import EngineSpec, reason, result
from trd_ray.failures import LOSSES
from trd_ray.failures import PASSING as PASSING

HEALTH_TIMEOUT_S = 120
PULSE_EVERY_S = 2.0
LAST_CHANCE = 0.1  # of the heartbeat: the caller may have been stopped too, and a second question tells
LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 64 * 1024

DEATHS = LOSSES  # among them EngineDied


async def answers(handle: ActorHandle) -> bool:
    """Whether the engine says within HEALTH_TIMEOUT_S that it is well."""
    try:
        await asyncio.wait_for(result(handle.check_health.remote()), HEALTH_TIMEOUT_S)
    except Exception:
        return False
    return True


async def death_of(
    handle: ActorHandle, heartbeat_s: float, may_be_quiet: Callable[[], bool], is_up: Callable[[], bool] = lambda: False
) -> str:
    """Ask for the engine's pulse until it is dead; returns why. An actor that is not placed yet may take any time.

    `may_be_quiet` says whether its vLLM may wait for others now, `is_up` whether the actor has answered anybody. A
    broken connection is asked again.
    """
    heard_s: float | None = None  # when the actor answered
    while True:
        if heard_s is None and is_up():
            heard_s = time.monotonic()
        try:
            quiet_s = await (_first(handle, is_up) if heard_s is None else _pulse(handle, heartbeat_s))
        except TimeoutError:
            return f"TimeoutError: no sign of life for {heartbeat_s:g} s (heartbeat_s)"
        except PASSING as e:
            if heard_s is not None and time.monotonic() - heard_s > heartbeat_s:
                return reason(e)
        except DEATHS as e:
            return reason(e)
        else:
            heard_s = time.monotonic()
            if quiet_s > heartbeat_s and not may_be_quiet():
                return f"TimeoutError: vLLM neither answered nor worked for {quiet_s:.0f} s (heartbeat_s)"
        await asyncio.sleep(PULSE_EVERY_S)


async def _first(handle: ActorHandle, is_up: Callable[[], bool]) -> float:
    """The first pulse; 0 once the actor is there, or has answered somebody else, after which it may have stopped."""
    pulse = asyncio.ensure_future(result(handle.pulse.remote()))
    try:
        while not (await asyncio.wait({pulse}, timeout=PULSE_EVERY_S))[0]:
            if is_up() or (hasattr(handle, "_actor_id") and await asyncio.to_thread(has_process, handle)):
                return 0.0
        return pulse.result()
    finally:
        pulse.cancel()


async def _pulse(handle: ActorHandle, heartbeat_s: float) -> float:
    # Not by `wait_for`, which in Python 3.11 may swallow the cancellation of who waits.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(heartbeat_s * (1 - LAST_CHANCE)):
            return await result(handle.pulse.remote())
    async with asyncio.timeout(heartbeat_s * LAST_CHANCE):
        return await result(handle.pulse.remote())


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
