"""The seats of a plan, taken from Ray before anything starts on them, so that what was printed is what runs.

    Placement --reserve()--> Reservation: places("sampler"), one for each engine;  ranks(), a node for each rank
                             admit_learner(): what ranks share with engines is given to them

An engine on a GPU runs in a placement group of that GPU, or of its GPUs if it has several. Ray is left no choice:

- The groups of a node are made one after another, in the order of the plan. Ray gives each the lowest GPU that is free.
- Ray puts a share of a GPU where the least is left that suffices. So a group takes all of its GPU that the learner does
  not, and a filler takes the learner's share until it is the learner's turn. Each rank then finds room on one GPU only.
- The learner's own group is Ray Train's. Its ranks go to the plan's nodes by their labels.

An engine without a GPU prefers its node where there are several. At the end `release` gives everything back; so does
Ray when the driver ends in any other way.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from trd_ray.errors import UserError
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import EPSILON, LEARNER, Seat

NODE_LABEL = "ray.io/node-id"  # Ray's own, on every node
POLL_S = 0.5


@dataclass(frozen=True)
class Place:
    """Where one engine runs. Plain data that a pool is given, and keeps for the restarts of the engine."""

    strategy: Any  # Ray's scheduling strategy
    node_id: str
    turn: int = 0  # how many engines of its pool start before it on its GPU

    def is_there(self) -> bool:
        """Whether its node lives. An engine of a node that has gone is started wherever there is room."""
        return any(node["NodeID"] == self.node_id and node["Alive"] for node in ray.nodes())


@dataclass
class Reservation:
    plan: Placement
    groups: dict[tuple[int, tuple[int, ...]], PlacementGroup] = field(default_factory=dict)  # machine, its GPUs
    fillers: list[PlacementGroup] = field(default_factory=list)
    leaving: dict[str, list[PlacementGroup]] = field(default_factory=dict)  # of nodes that are still there, by their id

    def places(self, pool: str) -> list[Place]:
        """One for each engine of the pool, in their order; none where one machine has all and no GPU is asked for."""
        found = self.places_by_number(pool).values()
        if len(self.plan.machines) > 1:
            return list(found)
        return [place for place in found if isinstance(place.strategy, PlacementGroupSchedulingStrategy)]

    def places_by_number(self, pool: str) -> dict[int, Place]:
        """The same by the number of the engine, and for all of one machine too, since that may be the last one left.

        An engine that has lost its node, and was given no other, has no place.
        """
        places = {}
        met: dict[tuple[int, int], int] = {}  # engines of the pool on each GPU so far
        for seat in self.plan.seats_of(pool):
            node_id = self.plan.machines[seat.machine].node_id
            group = next((g for (place, gpus), g in self.groups.items() if _within(seat, place, gpus)), None)
            if group is not None:
                on_its_gpus = [(seat.machine, gpu) for gpu in seat.gpus]
                turn = max(met.get(gpu, 0) for gpu in on_its_gpus)
                met |= dict.fromkeys(on_its_gpus, turn + 1)
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
                places[seat.number] = Place(strategy, node_id, turn)
            elif node_id:
                places[seat.number] = Place(NodeAffinitySchedulingStrategy(node_id, soft=True), node_id)
        return places

    def ranks(self) -> list[str]:
        """The node of each learner rank; none where there is only one machine, or Ray does not run yet."""
        nodes = [self.plan.machines[seat.machine].node_id for seat in self.plan.seats_of(LEARNER)]
        return nodes if len(self.plan.machines) > 1 and all(nodes) else []

    def admit_learner(self) -> None:
        """Leave the learner its shares of the engines' GPUs; called when those engines are up."""
        for group in self.fillers:
            remove_placement_group(group)
        self.fillers = []

    def release(self) -> None:
        for group in [*self.fillers, *self.groups.values(), *(g for groups in self.leaving.values() for g in groups)]:
            _give_back(group)
        self.fillers, self.groups, self.leaving = [], {}, {}


def _within(seat: Seat, machine: int, gpus: tuple[int, ...]) -> bool:
    return bool(seat.gpus) and seat.machine == machine and set(seat.gpus) <= set(gpus)


def reserve(plan: Placement, timeout_s: float, while_waiting: Callable[[], object] = lambda: None) -> Reservation:
    """Take the GPUs of engines, and hold those that ranks have shares of; raises UserError if they are not free.

    `while_waiting` is called while somebody else still holds a GPU. It may raise to give up.
    """
    reservation = Reservation(plan)
    try:
        _take(reservation, timeout_s, while_waiting)
    except BaseException:
        reservation.release()
        raise
    return reservation


def reserve_again(
    before: Reservation, plan: Placement, timeout_s: float, while_waiting: Callable[[], object] = lambda: None
) -> Reservation:
    """The same for a plan that was made again: what still holds is kept, and what nobody sits on is given back.

    A node that leaves is not in the plan, but what runs there goes on until it is gone.

    Raises what `reserve` raises. What anybody sits on is then held as before.
    """
    now = {machine.node_id: place for place, machine in enumerate(plan.machines)}
    kept = {}
    leaving = {node_id: list(groups) for node_id, groups in before.leaving.items()}
    for (machine, gpus), group in list(before.groups.items()):
        node_id = before.plan.machines[machine].node_id
        place = now.get(node_id)
        if place is None:
            leaving.setdefault(node_id, []).append(group)
        elif any(_within(s, place, gpus) for s in plan.seats if s.actor != LEARNER):
            kept[place, gpus] = group
        else:
            _give_back(before.groups.pop((machine, gpus)))
    for node_id in leaving.keys() - _alive() if leaving else ():
        for group in leaving.pop(node_id):
            _give_back(group)
    reservation = Reservation(plan, dict(kept), list(before.fillers), leaving)
    try:
        _take(reservation, timeout_s, while_waiting)
    except BaseException:
        for place, group in reservation.groups.items():
            if place not in kept:
                _give_back(group)
        for filler in reservation.fillers[len(before.fillers) :]:
            _give_back(filler)
        raise
    return reservation


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _give_back(group: PlacementGroup) -> None:
    with contextlib.suppress(Exception):
        remove_placement_group(group)


def _take(reservation: Reservation, timeout_s: float, while_waiting: Callable[[], object]) -> None:
    """Take what the plan needs and the reservation does not hold yet."""
    plan = reservation.plan
    deadline = time.monotonic() + timeout_s
    for machine, gpus, holders in _tied(plan):
        learner = max((seat.share for seat in holders if seat.actor == LEARNER), default=0.0)
        engines = [seat for seat in holders if seat.actor != LEARNER]
        if (machine, gpus) in reservation.groups or (not engines and learner > 1 - EPSILON):
            continue  # Ray Train takes those that ranks have for themselves
        cpus = sum(plan.specs[seat.actor].cpus for seat in engines)
        group = _group(plan, machine, round(len(gpus) - learner, 4), cpus)
        reservation.groups[machine, gpus] = group
        _wait(group, plan, machine, gpus, deadline, timeout_s, while_waiting)
        if EPSILON < learner < 1 - EPSILON:
            filler = _group(plan, machine, learner, 0.0)
            reservation.fillers.append(filler)
            _wait(filler, plan, machine, gpus, deadline, timeout_s, while_waiting)


def _tied(plan: Placement) -> list[tuple[int, tuple[int, ...], list[Seat]]]:
    """(machine, GPUs, who sits there): single GPUs, and those that one engine has together, in the plan's order."""
    holders: dict[tuple[int, tuple[int, ...]], list[Seat]] = {}
    for seat in plan.seats:
        if seat.gpus:
            holders.setdefault((seat.machine, seat.gpus), []).append(seat)
    return [(machine, gpus, holders[machine, gpus]) for machine, gpus in sorted(holders)]


def _group(plan: Placement, machine: int, gpus: float, cpus: float) -> PlacementGroup:
    bundle = {"GPU": gpus} | ({"CPU": cpus} if cpus else {})
    node_id = plan.machines[machine].node_id
    return placement_group([bundle], strategy="STRICT_PACK", bundle_label_selector=[{NODE_LABEL: node_id}])


def _wait(
    group: PlacementGroup,
    plan: Placement,
    machine: int,
    gpus: Sequence[int],
    deadline: float,
    timeout_s: float,
    while_waiting: Callable[[], object],
) -> None:
    while not group.wait(POLL_S):
        while_waiting()
        if time.monotonic() > deadline:
            node = plan.machines[machine].name
            raise UserError(
                f"node {node} did not give GPU {', '.join(map(str, gpus))} and the CPUs of the plan within "
                f"{timeout_s:.0f} s (sampler.start_timeout_s): another job holds them (`ray status` on a node shows "
                "what is in use), so end it or wait for it"
            )
