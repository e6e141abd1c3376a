"""One weight update of a pool: its engines take the next weights together, and none ever serves mixed ones.

    prepare   engines that are up: UPDATING; their requests finish or freeze     learner: pause
    begin     from here on an engine that fails has mixed weights                learner: start_weight_update
    receive   the weights go from the learner's ranks to the engines' workers    learner: update_weights
    end       every engine has loaded the version and goes on: SERVING           learner: finish_weight_update
    give_up   the old weights serve on, or the engines start again               learner: abort_weight_update

The engines that take part are those that are up when the update is made. One that dies in it is restarted at once, and
the learner is told (`EngineFailed`). It gives the update up on every pool and tries again. An engine that comes up in
the middle waits for the next update.

Where the engines wait for each other (`receive`, and the handshake before an update), the first that fails is told
without the others, which may never return. Those that have not come out of the call COME_OUT_S later are restarted.
The same holds for those that are still in the handshake when the learner gives it up.

Who waits for what: `prepare` waits for the leases of its engines, each of which ends by `request_timeout_s` or soon
after (leases.py). A run has waited for them before (`Pool.drain`), so that this is no part of the learner's patience.
Every other step waits for the engines, until the learner's patience (sync.timeout_s) is over and it gives the update
up:
- engines that were not touched resume within HEALTH_TIMEOUT_S, or are restarted;
- engines that were touched are killed, which ends every call that still waits for one.

At shutdown the engines are stopped in mid-update. Nothing needs to be undone, since the learner has the weights.
"""

import asyncio
import contextlib
from asyncio import ALL_COMPLETED, FIRST_EXCEPTION
from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle

from trd_ray.engine.actor import reason, result
from trd_ray.engine.deaths import DEATHS, HEALTH_TIMEOUT_S, PASSING
from trd_ray.engine.fleet import UP, Fleet, Life, State

LAST_WORDS_S = 2.0  # after a first failure, which may be that of an engine whose peer has died
COME_OUT_S = 10.0

Engines = Sequence[tuple[Life, ActorHandle]]  # lives with the handle that each had when it was chosen
Calls = list[tuple[tuple[Life, ActorHandle], asyncio.Task]]  # of one method, on each of several engines


class EngineFailed(RuntimeError):
    """An engine could not do its part of a weight update; which and why is in the message."""


class WeightUpdate:
    def __init__(self, fleet: Fleet, in_flight: str, touched: bool = False):
        self.fleet, self.in_flight = fleet, in_flight
        self.before = {life: life.state for life in fleet.those(*UP)}
        self.engines = [(life, life.handle) for life in self.before]
        self.touched = touched  # an engine that fails from here on holds neither the old weights nor the new ones
        self.over = False
        for life in self.before:
            life.move(State.UPDATING)

    async def prepare(self) -> None:
        """The engines pause, once their requests have finished (`drain`) or as they are (`keep`)."""
        if self.in_flight == "drain":
            # Drained here rather than in vLLM: a request whose lease is older than the pause could arrive after it, and
            # sample new weights.
            await self.fleet.wait_at_most(
                self.fleet.spec.request_timeout_s + HEALTH_TIMEOUT_S,
                "requests to finish before new weights arrive (sync.in_flight=drain)",
                lambda: self.over or not any(life.outstanding for life in self.before),
            )
        await self._all("pause", self.in_flight)

    async def begin(self) -> None:
        self.touched = True
        await self._all("start_weight_update")

    async def receive(self, update_info: Any) -> None:
        await self._all("update_weights", update_info, together=True)

    async def end(self, version: int) -> None:
        """Every engine serves `version` when this returns, and no other engine does."""
        await self._all("finish_weight_update", version)
        await self._all("resume")
        self._check("resume")
        self.over = True
        self.fleet.serve(version)

    async def give_up(self) -> None:
        self.close()
        if self.fleet.failure:
            return
        alive = [(life, handle) for life, handle in self.engines if life.handle is handle]
        if not self.touched:
            with contextlib.suppress(EngineFailed):
                await call_each(self.fleet, alive, "resume", timeout_s=HEALTH_TIMEOUT_S)
            return
        for life, handle in alive:
            if life.handle is handle:
                await self.fleet.restart(life)

    def close(self) -> None:
        """No engine takes part any longer; each is what it was, but STALE if it may hold a part of the new weights."""
        self.over = True
        for life, before in self.before.items():
            if life.state is State.UPDATING:
                life.move(State.STALE if self.touched else before)

    async def _all(self, method: str, *args: Any, together: bool = False) -> None:
        self._check(method)
        await call_each(self.fleet, self.engines, method, arguments=[args] * len(self.engines), together=together)

    def _check(self, method: str) -> None:
        if self.over:
            raise given_up(self.fleet, method)


def given_up(fleet: Fleet, method: str) -> EngineFailed:
    return EngineFailed(f"pool {fleet.spec.name} was told to {method} in a weight update that was given up")


async def call_each(
    fleet: Fleet,
    engines: Engines,
    method: str,
    *,
    arguments: list[tuple] | None = None,
    timeout_s: float | None = None,
    together: bool = False,
    keep: Calls | None = None,
) -> None:
    """Call every engine; one that is found dead is restarted, and the caller told, who may try again.

    Without `timeout_s` the wait ends with the engines, or when the learner gives up (sync.timeout_s). In a call that
    they make `together` each may wait for the others, so the first failure ends it for all. `keep` is given the calls,
    for whoever gives them up (`come_out`).
    """
    calls = [
        asyncio.create_task(asyncio.wait_for(result(getattr(handle, method).remote(*a)), timeout_s))
        for (_, handle), a in zip(engines, arguments or [()] * len(engines), strict=True)
    ]
    if keep is not None:
        keep.extend(zip(engines, calls, strict=True))
    inside: set[asyncio.Task] = set()
    if calls:
        _, inside = await asyncio.wait(calls, return_when=FIRST_EXCEPTION if together else ALL_COMPLETED)
    if inside:
        _, inside = await asyncio.wait(inside, timeout=LAST_WORDS_S)
    outcomes = [None if call in inside else call.exception() for call in calls]
    for (life, handle), outcome in zip(engines, outcomes, strict=True):
        if timeout_s is not None and isinstance(outcome, TimeoutError):
            await fleet.on_death(life, handle, f"TimeoutError: no sign of life for {timeout_s:.0f} s")
        elif together and isinstance(outcome, PASSING):
            pass  # it might not answer before the others let it go; the end of the update or the next check finds it
        elif isinstance(outcome, DEATHS):
            await fleet.on_death(life, handle, reason(outcome), passing=isinstance(outcome, PASSING))
    come_out(fleet, [(one, call) for one, call in zip(engines, calls, strict=True) if call in inside])
    deaths_first = sorted(zip(engines, outcomes, strict=True), key=lambda one: not isinstance(one[1], DEATHS))
    for (life, _), outcome in deaths_first:
        if outcome is not None:
            raise EngineFailed(f"engine {life.spec.name}, {method}: {reason(outcome)}") from None


async def find_dead(fleet: Fleet) -> None:
    """Ask every engine that is up whether it lives; one that is found dead is restarted."""
    with contextlib.suppress(EngineFailed):
        up = [(life, life.handle) for life in fleet.those(*UP)]
        await call_each(fleet, up, "check_health", timeout_s=HEALTH_TIMEOUT_S)


def come_out(fleet: Fleet, calls: Calls) -> None:
    """Nobody waits for these calls any longer: the engines get COME_OUT_S to come out of them."""
    if calls:
        fleet.watch(_come_out(fleet, calls))


async def _come_out(fleet: Fleet, calls: Calls) -> None:
    """Restart the engines that are still in a call that is over: they hear nothing, and answer no request."""
    await asyncio.wait([call for _, call in calls], timeout=COME_OUT_S)
    for (life, handle), call in calls:
        if call.done():
            call.exception()  # taken note of, else asyncio would complain
        elif life.handle is handle and not fleet.failure:
            await fleet.restart(life)
