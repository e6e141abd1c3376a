"""What a pool offers to the learner: it receives weights as if it were one engine of vLLM's weight transfer.

    receivers() -> how many workers there are, once those that are found dead are not counted
    init_weight_transfer_engine(...)   the handshake, when those have changed
    drain()                            wait for what is in flight, where that is to finish first
    pause(), start_weight_update(), update_weights(...), finish_weight_update(version)
    load_adapter(files), serve_adapter(version)     the same of an adapter, beside the one that is served
    abort_weight_update()              give up what is under way

What one update does to the engines is in update.py and adapters.py.
"""

from typing import Any

from trd_ray.engine.actor import PoolSpec
from trd_ray.engine.adapters import AdapterUpdate
from trd_ray.engine.deaths import HEALTH_TIMEOUT_S
from trd_ray.engine.fleet import UP, Fleet
from trd_ray.engine.routing import Routing
from trd_ray.engine.update import Calls, EngineFailed, WeightUpdate, call_each, come_out, find_dead, given_up


class Receiver:
    """A part of `Pool`, which has these."""

    spec: PoolSpec
    fleet: Fleet
    routing: Routing
    dropped: Any

    update: WeightUpdate | None = None  # under way
    draining = False  # an update is about to begin
    joining: Calls | None = None  # of the handshake that comes before an update, until that is given up
    coming: AdapterUpdate | None = None  # the same as `update` of an adapter, for which the gate stays open

    async def receivers(self) -> tuple[int, int]:
        """(generation, engine worker processes), once an engine is up and those that are found dead are not counted.

        The transfer group must be made anew when the generation changes. Engines that start meanwhile get their weights
        later (`needs_weights`).
        """
        await find_dead(self.fleet)
        await self.fleet.wait_at_most(
            self.spec.start_timeout_s + HEALTH_TIMEOUT_S,
            f"an engine to be up ({self.spec.name}.start_timeout_s)",
            lambda: bool(self.fleet.those(*UP)),
        )
        return self.fleet.generation, len(self.fleet.those(*UP)) * self.spec.engine.tensor_parallel

    async def init_weight_transfer_engine(self, generation: int, init_info: dict) -> None:
        """Every engine joins the transfer group, each with the ranks that follow those of the engine before it."""
        self._check(generation)
        up = self.fleet.those(*UP)
        width, offset = self.spec.engine.tensor_parallel, init_info.get("rank_offset")
        infos = [
            init_info if offset is None else init_info | {"rank_offset": offset + i * width} for i in range(len(up))
        ]
        self.joining = []
        await call_each(
            self.fleet,
            [(life, life.handle) for life in up],
            "init_weight_transfer_engine",
            arguments=[(info,) for info in infos],
            together=True,
            keep=self.joining,
        )

    async def drain(self) -> None:
        """Shut the gate and wait for what is in flight, if that is to finish before new weights come (`drain`).

        The gate opens when the update that follows ends or is given up, or if this wait takes too long. A run waits
        here, for as long as a request may take, and only then asks the learner to send: its patience is shorter. A dead
        engine is looked for first, since it answers nothing that it holds.
        """
        if self.spec.in_flight != "drain":
            return
        self.draining = True
        await find_dead(self.fleet)
        try:
            await self.fleet.wait_at_most(
                self.spec.request_timeout_s + HEALTH_TIMEOUT_S,
                "requests to finish before new weights arrive (sync.in_flight=drain)",
                lambda: not self.draining or not any(life.outstanding for life in self.fleet.those(*UP)),
            )
        except TimeoutError:
            await self.abort_weight_update()
            raise

    async def pause(self, generation: int) -> None:
        """Begin an update: the gate closes, and what is in flight finishes or freezes."""
        self._check(generation)
        if self.update:
            self.update.close()
        self.update = WeightUpdate(self.fleet, self.spec.in_flight, touched=self.dropped)
        await self.update.prepare()

    async def start_weight_update(self) -> None:
        await self._under_way("start_weight_update").begin()

    async def update_weights(self, update_info: Any) -> None:
        await self._under_way("update_weights").receive(update_info)

    async def finish_weight_update(self, version: int) -> None:
        """End an update: every engine serves `version` before the gate opens."""
        await self._under_way("finish_weight_update").end(version)
        self.routing.forget()
        self.update, self.draining = None, False
        await self.fleet.notify()

    async def load_adapter(self, files: list) -> None:
        """Begin an update of adapters: every engine holds the new one beside the one that it goes on serving."""
        if self.coming:
            self.coming.close()
        self.coming = AdapterUpdate(self.fleet)
        await self.coming.load(files)

    async def serve_adapter(self, version: int) -> None:
        """End it: every engine serves `version` before the gate lets its requests in."""
        if self.coming is None:
            raise given_up(self.fleet, "serve_adapter")
        await self.coming.serve(version)
        self.routing.forget()
        self.coming = None
        await self.fleet.notify()

    async def abort_weight_update(self) -> None:
        """Give up the update under way, if any: its engines go on with the old weights, or restart without them.

        Those that are still in the handshake before it come out of that, or restart.
        """
        come_out(self.fleet, self.joining or [])
        update = self.update or self.coming
        self.joining, self.update, self.coming, self.draining = None, None, None, False
        if update:
            await update.give_up()
        await self.fleet.notify()

    def _check(self, generation: int) -> None:
        if generation != self.fleet.generation:
            raise EngineFailed(f"the engines of pool {self.spec.name} changed just before they were sent weights")

    def _under_way(self, method: str) -> WeightUpdate:
        if self.update is None:
            raise given_up(self.fleet, method)
        return self.update
