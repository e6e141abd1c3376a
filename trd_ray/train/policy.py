"""The version of the policy: this is the one place that knows what the learner has made and what each pool serves.

    publish(version): drain, then learner --push--> every pool that follows it; a push that failed is tried again, up to
                      three times in all, after the engines that caused it have restarted

Version v is the weights after v steps. `publish` first waits until the requests in flight have finished, where they are
to (sync.in_flight=drain), for as long as one may take (request_timeout_s). Then it waits for the learner's ranks and
for all engines that follow, each wait with a deadline. When it returns, they all serve the version, and the gates of
the pools let its requests in. If that cannot be, it raises RunFailed, which says why. Every wait calls `look`, which
raises if a pool has failed or the run was asked to stop.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from trd_ray.errors import RunFailed

ATTEMPTS = 3
POLL_S = 0.5
TOGETHER_S = 10.0  # engines that were killed together come up about together, and are sent the weights once


class Policy:
    def __init__(
        self,
        version: int,
        *,
        following: Collection[str],
        push: Callable[[int], str | None],
        look: Callable[[], dict[str, dict[str, Any]]],
        restart_timeout_s: float,
        drain: Callable[[], str | None] = lambda: None,
        offline: bool = False,
        drains: bool = False,
    ):
        """`version` is the learner's. The pools start with the initial weights, which are version 0.

        - `following` names the pools that get weights.
        - `push` sends a version to them and returns what went wrong, or None.
        - `look` gives the status of each pool.
        - `drain` returns when no request is in flight that is to finish before new weights come, or what went wrong.
        - `offline` pools sample with the initial weights to the end, but are evaluated with newer ones.
        - `drains`: a push waits for the requests in flight. An engine that comes up while others of its pool serve then
          waits for the next version, since all of them would stand still for it.
        """
        self.version = version
        self.offline = offline
        self.serves = dict.fromkeys(following, 0)
        self.push = push
        self.look = look
        self.restart_timeout_s = restart_timeout_s
        self.drain = drain
        self.patient = drains and not offline

    @property
    def served(self) -> int:
        """The version that all pools which follow the learner serve, at least."""
        return min(self.serves.values(), default=0)

    def publish(self, version: int) -> None:
        """Note that the learner has made `version`, and give it to the pools that follow, unless they are offline."""
        self.version = version
        if not self.offline:
            self.send()

    def catch_up(self) -> None:
        """Give offline pools the newest weights before an evaluation, which they too answer with those."""
        if self.served != self.version:
            self.send()

    def watch(self) -> None:
        """Give the current weights to engines that restarted or served another run; called while rows are awaited."""
        statuses = self.look().values()
        if any(status["needs_weights"] and not (self.patient and _serves(status)) for status in statuses):
            self.send()

    def send(self) -> None:
        """Give every engine that follows the learner's version; a failed engine restarts first."""
        problem: str | None = None
        for attempt in range(ATTEMPTS if self.serves else 0):
            problem = self.drain() or self.push(self.version)
            if problem is None:
                self.serves = dict.fromkeys(self.serves, self.version)
                return
            self._wait_for_restart(problem if attempt < ATTEMPTS - 1 else f"{problem} (three times)")
        if problem:
            raise RunFailed(f"the engines could not be given policy version {self.version}: {problem}")

    def _wait_for_restart(self, problem: str) -> None:
        """Wait for the engines that restart together, and no longer than for the first of each pool where one is late.

        One that comes up later gets the weights by `watch`.
        """
        begin = time.monotonic()
        while True:
            statuses = [status for name, status in self.look().items() if name in self.serves]
            waited_s = time.monotonic() - begin
            if not any(status["restarting"] for status in statuses):
                return
            if waited_s > TOGETHER_S and all(status["up"] for status in statuses):
                return
            if waited_s > self.restart_timeout_s:
                raise RunFailed(f"an engine did not come back after a failed weight sync: {problem}")
            time.sleep(POLL_S)


def _serves(status: dict[str, Any]) -> bool:
    """Whether an engine of the pool answers requests."""
    return any(life["state"] == "serving" for life in status["lives"])
