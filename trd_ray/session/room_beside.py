"""Wait until a running Ray has room for engines that others hold now, and say so while that lasts.

    Placement --wait_for_room()--> a placement group of what engines and verifiers reserve: pending, ready, given back

Verifier tasks hold their CPUs for moments. An engine that took the last ones would leave none for them, neither for
those of the run beside it nor for its own, and both would stand still. So there must be room for two of them as well.

Ray's own queue decides who is next, and its autoscaler sees what is wanted. But the run goes first: what it has just
lost, as by the death of an engine or of the learner's ranks, it is about to take again, and would end without it. So
room that came is held for SETTLE_S, and given back if the run beside turns out to lack something.

Between the end of the wait and the start of the engines somebody else may take the room; then the engines wait for it
for their start_timeout_s, as ever.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

from ray.util.placement_group import placement_group, remove_placement_group

from trd_ray.preflight.actors import ActorSpec
from trd_ray.preflight.placement import Placement

POLL_S = 0.5
SETTLE_S = 15.0  # the run has seen by then what it has lost, and has written it into its status.json
VERIFIERS = 2  # tasks, one of either side


def wait_for_room(
    plan: Placement,
    pool: str,
    whose: str,
    *,
    verifier_cpus: float,
    also: Sequence[str] = (),
    while_waiting: Callable[[], object],
    say: Callable[[str], object],
    is_whole: Callable[[], bool] = lambda: True,
) -> None:
    """Return when all engines of the pool have room, and those of the pools that it needs `also`.

    The wait has no deadline: `while_waiting` may raise to end it.
    `whose` is the run that holds the room meanwhile, and `is_whole` says whether it has all that it needs.
    `verifier_cpus` is what a verifier task reserves.
    """
    spec = plan.specs[pool]
    engines = [bundle for one in (pool, *also) for bundle in [_bundle(plan.specs[one])] * plan.specs[one].replicas]
    engines = [bundle for bundle in engines if bundle]
    if not engines:
        return
    bundles = engines + [{"CPU": verifier_cpus}] * VERIFIERS
    said = False

    def wait() -> None:
        nonlocal said
        if not said:
            said = True
            say(
                f"waits for room for an engine ({spec.cpus:g} CPUs, {spec.gpus:g} GPUs) and for verifiers beside "
                f"run {whose}: it is there when an engine of it or the run ends"
            )
        while_waiting()

    while not _have(bundles, is_whole, wait):
        wait()
        time.sleep(POLL_S)


def _bundle(spec: ActorSpec) -> dict[str, float]:
    """What an engine of the pool reserves; empty for nothing."""
    return {name: amount for name, amount in (("CPU", spec.cpus), ("GPU", spec.gpus)) if amount}


def _have(bundles: list[dict[str, float]], is_whole: Callable[[], bool], wait: Callable[[], object]) -> bool:
    """Queue for the room until it is there; False as soon as the run beside lacks something."""
    if not is_whole():
        return False
    group = placement_group(bundles, strategy="PACK")
    try:
        if group.wait(POLL_S):  # it was free already
            return True
        came_s: float | None = None
        while is_whole():
            wait()
            if not group.wait(POLL_S):
                continue
            if came_s is None:
                came_s = time.monotonic()
            if time.monotonic() - came_s >= SETTLE_S:
                return True
            time.sleep(POLL_S)
        return False
    finally:
        with contextlib.suppress(Exception):
            remove_placement_group(group)
