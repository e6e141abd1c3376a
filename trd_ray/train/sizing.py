"""When the learner gets another number of ranks, or other nodes: at a step's end, if the nodes are others by then.

    nodes that came, or that are about to go  ->  due()  ->  checkpoint, another group from it, the next step

- Only a run on a cluster looks, and only at times: a look asks Ray for its nodes.
- More ranks are started only if Ray has what they need free at this moment: else they would wait for somebody else.
  If they wait all the same, and do not start in time, no more are tried for PUT_OFF_S.
- A rank that is lost before its step ends needs no look: the group starts again at once, at the size that fits.
- The loss is the mean over the whole step's tokens, whatever number of ranks shares them.
"""

import time
from collections.abc import Callable, Mapping

import ray

from trd_ray.preflight.seats import LEARNER
from trd_ray.session.session import Session

LOOK_EVERY_S = 30.0
PUT_OFF_S = 3600.0


class GroupSize:
    def __init__(
        self,
        session: Session,
        ranks: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        free: Callable[[], Mapping[str, float]] = lambda: ray.available_resources(),
    ):
        """`ranks` is how many there are; `free` is what Ray has free."""
        self.session, self.ranks, self.monotonic, self.free = session, ranks, monotonic, free
        self.looked = monotonic()
        self.grows_from = 0.0

    def due(self) -> bool:
        """Whether the group should start again now, with the seats that it would be given."""
        now = self.monotonic()
        if now - self.looked < LOOK_EVERY_S:
            return False
        self.looked = now
        wanted = self.session.ranks_if_seated_now()
        more = 0 if wanted is None else wanted - self.ranks()
        return wanted is not None and (more <= 0 or now >= self.grows_from) and self._has_room_for(more)

    def put_off(self) -> None:
        """A larger group did not start in time."""
        self.grows_from = self.monotonic() + PUT_OFF_S

    def _has_room_for(self, more: int) -> bool:
        learner = self.session.plan.specs[LEARNER]
        free = self.free()
        return all(free.get(name, 0.0) >= more * n for name, n in (("CPU", learner.cpus), ("GPU", learner.gpus)))
