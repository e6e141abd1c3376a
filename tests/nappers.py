"""Stand-ins for engines that have their GPUs in turn with a learner: they write down whatever is done out of turn."""

import asyncio
from typing import Any

from stands import Stand
from trd_ray.engine.actor import Condition
from trd_ray.engine.resting import DROPPED, KV_CACHE, WEIGHTS


class Gpus:
    """What engines and learner share; `wrong` is what happened while it must not."""

    def __init__(self) -> None:
        self.learner_works = False
        self.wrong: list[str] = []
        self.log: list[str] = []  # what was done, in its order

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


class Napper(Stand):
    """An engine that knows which part of its memory it has, and whether its weights are any."""

    def __init__(self, name: str, gpus: Gpus):
        super().__init__(name)
        self.gpus, self.asleep, self.garbage, self.mixed, self.under_way, self.version = gpus, set(), False, False, 0, 0

    async def call(self, method: str, arguments: tuple) -> Any:
        require = self.gpus.require
        dead = self.killed.is_set()
        if not dead and method not in ("pulse", "check_health", "condition"):
            self.gpus.log.append(f"{self.name} {method}{' ' + '+'.join(arguments[0]) if method == 'wake' else ''}")
        if method == "start":
            require(not self.gpus.learner_works, f"{self.name} starts while the learner has its GPU")
        elif method == "generate":
            require(dead or not self.asleep, f"{self.name} is asked at rest")
            require(dead or not self.garbage, f"{self.name} is asked without weights")
        elif method in ("start_weight_update", "update_weights", "finish_weight_update"):
            require(dead or WEIGHTS not in self.asleep, f"{self.name} is sent weights that it has no memory for")
            require(not self.gpus.learner_works, f"{self.name} is sent weights while the learner works")
        elif method in ("rest", "wake"):
            require(not self.under_way, f"{self.name} is told to {method} with a request under way")
            require(not self.gpus.learner_works, f"{self.name} is told to {method} while the learner works")
        self.under_way += method == "generate"
        try:
            if method == "condition":
                version = DROPPED if self.garbage else self.version
                self.condition_ = Condition(version, bool(self.asleep), self.mixed, bool(self.asleep))
            answer = await super().call(method, arguments)
        finally:
            self.under_way -= method == "generate"
        if method == "rest":
            self.asleep |= {KV_CACHE} if arguments[0] == "keep" else {WEIGHTS, KV_CACHE}
            self.garbage |= arguments[0] == "drop"
        elif method == "wake":
            self.asleep -= set(arguments[0])
        elif method == "start_weight_update":
            self.mixed = True
        elif method == "finish_weight_update":
            self.garbage = self.mixed = False
            self.version = arguments[0]
        return answer


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.001)
