"""How an engine stops and goes on: for an update of its weights, or for as long as the learner has its GPU.

    pause(in_flight) -> requests finish or freeze, weights may come -> resume()
    rest(how)        -> its memory is the learner's -> wake(weights) -> weights may come -> wake(kv_cache): it goes on

`how` says what becomes of the weights. Keys and values go in each case:

    keep      the weights stay                                    release_kv_cache_memory()
    drop      they go too, since whole new ones are sent later    sleep(level=2)
    offload   they go to pinned host memory                       sleep(level=1)

- vLLM goes on by itself once all of its memory is back, so nothing resumes an engine that wakes. A weight update in
  between does not either: an engine at rest does nothing at `pause` and `resume`.
- vLLM cannot sleep on a CPU: a rest is only a pause there.
- After `drop` the engine has no version until an update has ended.
- The pool that made a call may have died, and then it is made again: what is done is not done twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any

from trd_ray.config import Rest

WEIGHTS, KV_CACHE = "weights", "kv_cache"  # vLLM's names of the parts of its memory
LEVELS = {"drop": 2, "offload": 1}
DROPPED = -2  # in place of the version of weights that are not there


class Restful:
    """A part of `Engine`, which has these."""

    spec: Any
    llm: Any
    version: int
    paused = False
    asleep: frozenset[str] = frozenset()  # the parts of its memory that it has given up
    _control: Callable[[Coroutine], Awaitable[Any]]

    @cached_property
    def one_at_a_time(self) -> asyncio.Lock:
        return asyncio.Lock()

    async def pause(self, in_flight: str) -> None:
        """Stop scheduling: `drain` lets running requests finish first, `keep` freezes them. The cache is emptied."""
        if not self.asleep:
            self.paused = True
            mode = "wait" if in_flight == "drain" else "keep"
            await self._control(self.llm.pause_generation(mode=mode, clear_cache=True))

    async def resume(self) -> None:
        if not self.asleep:
            # Kept requests are preempted too: their keys are recomputed with the weights that go on to use them.
            await self._control(self.llm.reset_prefix_cache(reset_running_requests=True))
            await self._control(self.llm.resume_generation())
            self.paused = False

    async def rest(self, how: Rest) -> None:
        """Give the GPU to the learner; no request is under way. Who is half awake may rest again."""
        async with self.one_at_a_time:
            await self.pause("drain")
            gives = frozenset({KV_CACHE} if how == "keep" else {WEIGHTS, KV_CACHE}) - self.asleep
            self.asleep |= gives
            if how == "drop":
                self.version = DROPPED
            if gives and self.spec.on_gpu:
                keeps = how == "keep"
                llm = self.llm
                await self._control(
                    llm.release_kv_cache_memory() if keeps else llm.sleep(level=LEVELS[how], mode="wait")
                )

    async def wake(self, tags: Sequence[str]) -> None:
        """Take these parts of the memory back. With the last one vLLM goes on."""
        async with self.one_at_a_time:
            back = [tag for tag in tags if tag in self.asleep]
            left = self.asleep.difference(back)
            if back and self.spec.on_gpu:
                await self._control(self.llm.wake_up(tags=back))
            elif back and not left:
                await self._control(self.llm.resume_generation())
            self.asleep = left
            self.paused = self.paused and not (back and not left)
