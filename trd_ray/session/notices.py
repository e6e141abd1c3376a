"""Notices of nodes that leave: a spot machine's, an autoscaler's, a pod's that is deleted, `ray drain-node`.

    Ray's control service  ->  leaving()  ->  Notices.look()  ->  the run writes a checkpoint at once; if it is the node
                                                                  of its driver, it then stops as after SIGTERM

Ray learns of a spot notice from its cluster launcher, from Kubernetes (a `ray start --block` that gets SIGTERM tells
it), or from whoever calls `ray drain-node`. It then starts nothing more there, but what runs goes on until the node is
gone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray._private.state import state as gcs  # the public API tells of living nodes only

LOOK_EVERY_S = 2.0


def leaving() -> dict[str, float | None]:
    """The nodes that are about to go -> seconds that they have, None where nobody said."""
    now_ms = time.time() * 1000
    found = gcs.get_draining_nodes() or {}
    return {node: max(0.0, (at - now_ms) / 1000) if at else None for node, at in found.items()}


def this_node() -> str:
    return ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class Notice:
    node_id: str
    host: str
    left_s: float | None
    is_driver: bool  # whether the run itself ends with the node

    def __str__(self) -> str:
        when = "soon" if self.left_s is None else f"in {self.left_s:.0f} s"
        what = "the run ends, after a checkpoint" if self.is_driver else "a checkpoint is written"
        return f"node {self.host} leaves {when}: {what}"


class Notices:
    """What has been told of the nodes on which a run sits; each is told once."""

    def __init__(
        self,
        nodes: Callable[[], set[str]],
        driver: str,
        ask: Callable[[], dict[str, float | None]] = leaving,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`nodes` are those that the run has seats on now."""
        self.nodes = nodes
        self.driver = driver
        self.ask = ask
        self.clock = clock
        self._told: set[str] = set()
        self._looked = -LOOK_EVERY_S

    def look(self) -> list[Notice]:
        """Those that are new, at most once in LOOK_EVERY_S."""
        if self.clock() - self._looked < LOOK_EVERY_S:
            return []
        self._looked = self.clock()
        try:
            found = self.ask()
        except Exception:  # of a control service that cannot be reached; what that means is for others to say
            return []
        self._told &= found.keys()  # a node that stays after all may leave later
        mine = self.nodes() | {self.driver}
        new = [node for node in found if node in mine and node not in self._told]
        self._told |= set(new)
        return [Notice(node, _host(node), found[node], node == self.driver) for node in new]


def _host(node_id: str) -> str:
    return next((node["NodeManagerHostname"] for node in ray.nodes() if node["NodeID"] == node_id), node_id[:12])
