"""The nodes that this driver asks Ray's autoscaler for: what each of its waits needs, added up.

    a wait for nodes  --ask(who starts, plan)-->  all who live + all who start, in any wait  -->  Ray's autoscaler
                      --over()-->                 the same without them, or nothing

Ray has one request for the whole cluster, and each call replaces it. Two threads of a driver wait for nodes: for those
that have lost theirs, and for new engines. So may drivers of other runs, and each wait asks again now and then. A
cluster without an autoscaler takes no notice.
"""

import threading
import time
from collections.abc import Callable, Iterable

from trd_ray.preflight.placement import Placement
from trd_ray.preflight.reseating import Who

ASK_EVERY_S = 10.0

Bundles = list[dict[str, float]]

_waits: "dict[NodesWanted, Bundles]" = {}  # those under way -> what starts then
_turn = threading.Lock()


class NodesWanted:
    """What one wait asks for."""

    def __init__(self, request: Callable[..., object], clock: Callable[[], float] = time.monotonic):
        """`request` is Ray's `request_resources`."""
        self.request, self.clock = request, clock
        self.asked_s = 0.0
        self.living: Bundles = []

    def ask(self, starting: Iterable[Who], plan: Placement) -> None:
        """Ask for who starts, beside those who have seats in the plan: an autoscaler is told of all there must be."""
        now, starting = self.clock(), list(starting)
        with _turn:
            if self in _waits and now - self.asked_s < ASK_EVERY_S:
                return
            self.asked_s = now
            seated = [(seat.actor, seat.number) for seat in plan.seats]  # so may be who starts, if Ray did not give it
            self.living = _bundles((who for who in seated if who not in starting), plan)
            _waits[self] = _bundles(starting, plan)
            self._tell()

    def over(self) -> None:
        with _turn:
            if _waits.pop(self, None) is not None:
                self._tell()

    def _tell(self) -> None:
        starting = [bundle for bundles in _waits.values() for bundle in bundles]
        self.request(bundles=[*self.living, *starting] if _waits else [])


def _bundles(whos: Iterable[Who], plan: Placement) -> Bundles:
    """What each needs; nothing for who needs nothing."""
    specs = [plan.specs[actor] for actor, _ in dict.fromkeys(whos)]
    bundles = [{name: n for name, n in (("CPU", spec.cpus), ("GPU", spec.gpus)) if n} for spec in specs]
    return [bundle for bundle in bundles if bundle]
