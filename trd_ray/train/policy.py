"""The policy's version: the one place that knows what the learner has made and what each pool serves.

    publish(version): learner --push--> every pool that follows it; a push that failed is tried again once the engines
                                        that caused it have restarted, three times in all

Version v is the weights after v steps. `publish` waits for the learner's ranks and for all engines that follow, each
wait with a deadline; when it returns they all serve the version, and the pools' gates let its requests in. When it
cannot, it raises RunFailed, which says why not. `look` is what every wait calls: it raises when a pool has failed or
when the run was asked to stop.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from trd_ray.errors import RunFailed

ATTEMPTS = 3
POLL_S = 0.5


class Policy:
    def __init__(
        self,
        version: int,
        *,
        following: Collection[str],
        push: Callable[[int], str | None],
        look: Callable[[], dict[str, dict[str, Any]]],
        restart_timeout_s: float,
        offline: bool = False,
    ):
        """`version` is the learner's; the pools start with the initial weights, which are version 0.

        `following` names the pools that get weights. `push` sends them, and returns what went wrong. `look` gives each
        pool's status. `offline` pools sample with the initial weights to the end, but are evaluated with newer ones.
        """
        self.version, self.offline = version, offline
        self.serves = dict.fromkeys(following, 0)
        self.push, self.look, self.restart_timeout_s = push, look, restart_timeout_s

    @property
    def served(self) -> int:
        """The version that every pool which follows the learner serves."""
        return min(self.serves.values(), default=0)

    def publish(self, version: int) -> None:
        """The learner has made `version`; the pools that follow serve it when this returns, unless they are offline."""
        self.version = version
        if not self.offline:
            self.send()

    def catch_up(self) -> None:
        """Before an evaluation, which offline pools too answer with the newest weights."""
        if self.served != self.version:
            self.send()

    def watch(self) -> None:
        """While rows are awaited: engines that restarted, or served another run, get the current weights again."""
        if any(status["needs_weights"] for status in self.look().values()):
            self.send()

    def send(self) -> None:
        """Every engine that follows serves the learner's version when this returns; a failed one is restarted first."""
        problem: str | None = None
        for attempt in range(ATTEMPTS if self.serves else 0):
            problem = self.push(self.version)
            if problem is None:
                self.serves = dict.fromkeys(self.serves, self.version)
                return
            self._wait_for_restart(problem if attempt < ATTEMPTS - 1 else f"{problem} (three times)")
        if problem:
            raise RunFailed(f"the engines could not be given policy version {self.version}: {problem}")

    def _wait_for_restart(self, problem: str) -> None:
        deadline = time.monotonic() + self.restart_timeout_s
        while any(status["restarting"] for status in self.look().values()):
            if time.monotonic() > deadline:
                raise RunFailed(f"an engine did not come back after a failed weight sync: {problem}")
            time.sleep(POLL_S)
