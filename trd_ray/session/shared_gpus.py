"""The engines of a run whose learner has their GPUs in turn: told to rest and to wake, all pools at once.

    rest() -> all are at rest, the learner works -> wake_weights() -> weights are sent -> wake_keys() -> they serve

Pools that get no weights wake at the end, in one go. A run that borrows engines lets all of the lender's rest, also
those that it does not need itself: they have the same GPUs. Engines that were never started start in place of their
first waking: the learner, which starts first, has left them their memory by then.

Each wait ends with the pools, which have deadlines for all that they wait for (engine/phases.py). `look` of the session
is called meanwhile, and raises where a pool has failed or the run was asked to stop.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayTaskError

from trd_ray.engine.actor import reason
from trd_ray.engine.phases import Phase
from trd_ray.engine.resting import KV_CACHE, WEIGHTS
from trd_ray.errors import RunFailed
from trd_ray.session.session import ANSWER_POLL_S, Session


class SharedGpus:
    def __init__(self, session: Session):
        self.session = session

    @property
    def pools(self) -> Mapping[str, Any]:
        """Whatever sits on the GPUs."""
        return (self.session.lender or self.session).pools

    def rest(self) -> None:
        if not self.session.to_start:  # else they have no memory yet
            self._all(self.pools, "rest")

    def wake_weights(self) -> None:
        if self.session.to_start:
            self.session.start_engines()
            self.session.wait_until_started()
        self._all(self.session.following(), "wake", [WEIGHTS])

    def wake_keys(self) -> None:
        self._all(self.pools, "wake", [WEIGHTS, KV_CACHE])

    def wake_those_asleep(self, statuses: Mapping[str, Mapping[str, Any]], *, keys: bool) -> None:
        """A pool that has lost its keeper too does not know that it is awake."""
        asleep = [name for name, status in statuses.items() if status["phase"] == Phase.ASLEEP]
        if keys:
            self._all(asleep, "wake", [WEIGHTS, KV_CACHE])
        else:
            self._all([name for name in asleep if name in self.session.following()], "wake", [WEIGHTS])

    def _all(self, pools: Iterable[str], method: str, *arguments: Any) -> None:
        asked = {getattr(self.pools[name], method).remote(*arguments): name for name in pools}
        pending = list(asked)
        while pending:
            done, pending = ray.wait(pending, timeout=ANSWER_POLL_S)
            if not done:
                self.session.look()
            for answer in done:
                try:
                    ray.get(answer)
                except RayTaskError as e:
                    self.session.look()  # a pool that has failed says why
                    raise RunFailed(f"the engines of {asked[answer]} could not {method}: {reason(e)}") from e
