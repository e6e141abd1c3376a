"""Seats for what must start in the middle of a run whose nodes are others by now.

    who starts  ->  the nodes that live and do not leave  ->  Placement made again  ->  Reservation, what is new taken
                                  ^------ looked at again, up to cluster.wait_for_nodes_s, where it does not fit

While it waits, Ray's autoscaler is asked for what is missing (nodes_wanted.py).
"""

import time
from collections.abc import Callable, Collection, Sequence

import ray
from ray.autoscaler.sdk import request_resources

from trd_ray.config import Recipe
from trd_ray.engine.reservation import Reservation, reserve_again
from trd_ray.errors import RunFailed, UserError
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.reseating import Who, seats_for
from trd_ray.preflight.seats import LEARNER
from trd_ray.session.cluster import is_local, machines_but
from trd_ray.session.nodes_wanted import NodesWanted
from trd_ray.session.notices import leaving

LOOK_EVERY_S = 2.0
TAKE_S = 60.0  # for Ray to give what the nodes have free


def machines_now(known: Sequence[Machine], recipe: Recipe) -> list[Machine]:
    """The machines that a run can have now: those that live and are not about to leave. A local one stays as it is."""
    return list(known) if is_local(recipe) else machines_but(leaving(), known)


def seats_again(
    starting: Collection[Who],
    reservation: Reservation,
    recipe: Recipe,
    *,
    wait_s: float,
    machines: Callable[[Sequence[Machine]], Sequence[Machine]],
    while_waiting: Callable[[], object],
    say: Callable[[str], object],
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    request: Callable[..., object] = request_resources,
) -> Reservation:
    """A reservation with seats for those who start: (actor, number) of engines and ranks. All others keep theirs.

    If ranks start, they are all there are. Raises RunFailed with what is missing if it is not there after `wait_s`;
    `while_waiting` may raise to give up.
    """
    begun = clock()
    wanted = NodesWanted(request, clock)
    told = ""
    known: Sequence[Machine] = reservation.plan.machines
    try:
        while True:
            known = machines(known)
            plan = seats_for(starting, reservation.plan, known, recipe)
            if plan.fits:
                try:
                    return reserve_again(reservation, plan, min(TAKE_S, max(wait_s, LOOK_EVERY_S)), while_waiting)
                except UserError as e:  # somebody else has what the nodes have
                    missing = str(e)
            else:
                missing = "; ".join(plan.reasons)
            waited = clock() - begun
            if waited >= wait_s:
                raise RunFailed(_ended(missing, starting, wait_s))
            if missing != told:
                say(f"waiting up to {wait_s - waited:.0f} s for a node: {missing}")
                told = missing
            wanted.ask(starting, plan)
            while_waiting()
            sleep(LOOK_EVERY_S)
    finally:
        wanted.over()


def lost_ranks(plan: Placement) -> list[Who]:
    """All ranks of the learner, if the node of one is gone or about to go: the group starts as one."""
    there = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - leaving().keys()
    ranks = plan.seats_of(LEARNER)
    lost = any(plan.machines[seat.machine].node_id not in there for seat in ranks)
    return [(seat.actor, seat.number) for seat in ranks] if lost else []


def has_dead_node(plan: Placement) -> bool:
    """Whether Ray knows the node of a rank to be dead."""
    there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return any(plan.machines[seat.machine].node_id not in there for seat in plan.seats_of(LEARNER))


def _ended(missing: str, starting: Collection[Who], wait_s: float) -> str:
    who = ", ".join(f"{actor} {number}" for actor, number in sorted(starting))
    waited = f", also after {wait_s:.0f} s (cluster.wait_for_nodes_s)" if wait_s else ""
    return f"the nodes that are left have no place for {who}{waited}: {missing}"
