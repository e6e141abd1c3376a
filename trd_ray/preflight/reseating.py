"""The placement made again in the middle of a run: who must start finds a seat, and who lives keeps his.

    Placement, the machines as they are, who starts  ->  seats_for()  ->  Placement; its `reasons` say what is missing

A node may have gone since, and others may have come. An actor whose node is gone and who does not start now has no seat
in the new placement.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.preflight import shortages
from trd_ray.preflight.actor_plans import needs_of
from trd_ray.preflight.actors import ActorPlan
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement, sync_backend
from trd_ray.preflight.seats import EPSILON, LEARNER, Need, Seat, Unseated, seated

Who = tuple[str, int]  # "sampler", "refiner" or "learner", and the number


def seats_for(starting: Collection[Who], plan: Placement, machines: Sequence[Machine], recipe: Recipe) -> Placement:
    """The plan with seats for those who start. If ranks start, they are all there are: those of before have ended."""
    machines = [replace(machine, gpus=0) if machine.lacks else machine for machine in machines]
    needs = {(need.actor, need.number): need for need in needs_of(plan.actors)}
    now = {_name(machine): place for place, machine in enumerate(machines)}
    sitting = [
        replace(seat, machine=now[_name(plan.machines[seat.machine])])
        for seat in plan.seats
        if _name(plan.machines[seat.machine]) in now and not _starts(seat, starting)
    ]
    wanted = [_need(who, needs) for who in sorted(starting)] + [
        need for need in needs.values() if need.actor == "verifier"
    ]
    held = [(seat, _need((seat.actor, seat.number), needs)) for seat in sitting]
    if any(actor == LEARNER for actor, _ in starting):
        held += _reserved(sitting, plan, now)
    found = seated(wanted, machines, counts_memory=not recipe.cluster.memory_gib, sitting=held)
    if isinstance(found, Unseated):
        return replace(plan, machines=tuple(machines), seats=tuple(sitting), reasons=[_missing(found, plan)])
    order = list(plan.specs)
    seats = sorted(
        [*sitting, *(seat for seat in found if seat.actor != "verifier")],
        key=lambda seat: (order.index(seat.actor), seat.number),
    )
    return replace(plan, machines=tuple(machines), seats=tuple(seats), reasons=_other_way(plan, seats, recipe))


def ranks_that_fit(
    plan: Placement,
    machines: Sequence[Machine],
    recipe: Recipe,
    planned: Callable[[int], Placement],
    most: int | None = None,
) -> tuple[int, Placement] | None:
    """The most ranks that have seats now, of those that learner.workers allows, and `plan` with actors for so many.

    None if not even the fewest do. There are `most` at most. `planned` makes a plan for a number of ranks, on which it
    depends what a rank needs.
    """
    bounds = recipe.learner.bounds
    for ranks in range(bounds.max if most is None else most, bounds.min - 1, -1):
        of_ranks = replace(plan, actors=[_sized(actor, planned(ranks)) for actor in plan.actors])
        if seats_for(group_of(ranks), of_ranks, machines, recipe.with_ranks(ranks)).fits:
            return ranks, of_ranks
    return None


def group_of(ranks: int) -> list[Who]:
    return [(LEARNER, number) for number in range(ranks)]


def _sized(actor: ActorPlan, planned: Placement) -> ActorPlan:
    """The learner of the other plan; any other actor as it is, since pools may have grown or shrunk."""
    if actor.spec.name != LEARNER:
        return actor
    return next(other for other in planned.actors if other.spec.name == LEARNER)


def _starts(seat: Seat, starting: Collection[Who]) -> bool:
    of_the_group = seat.actor == LEARNER and any(actor == LEARNER for actor, _ in starting)
    return of_the_group or (seat.actor, seat.number) in starting


def _reserved(sitting: Sequence[Seat], plan: Placement, now: dict[str, int]) -> list[tuple[Seat, Need]]:
    """What engines that live hold of their GPUs besides their shares: all that was not the learner's.

    See `trd_ray.engine.reservation`.
    """
    ranks = {
        (now.get(_name(plan.machines[seat.machine])), gpu): seat.share
        for seat in plan.seats_of(LEARNER)
        for gpu in seat.gpus
    }
    taken: dict[tuple[int, int], float] = {}
    for seat in sitting:
        for gpu in seat.gpus:
            taken[seat.machine, gpu] = taken.get((seat.machine, gpu), 0.0) + seat.share
    return [
        (Seat("reserved", 0, machine, (gpu,), rest), Need("reserved", 0, 0.0, 0.0))
        for (machine, gpu), share in taken.items()
        if (rest := 1.0 - ranks.get((machine, gpu), 0.0) - share) > EPSILON
    ]


def _need(who: Who, needs: dict[Who, Need]) -> Need:
    """A pool may have grown since the plan was made: all of its engines need the same."""
    actor, number = who
    return replace(needs.get(who) or needs[actor, 0], number=number)


def _name(machine: Machine) -> str:
    return machine.node_id or machine.name


def _missing(unseated: Unseated, plan: Placement) -> str:
    return shortages.of_seat(unseated, plan.specs[unseated.need.actor])


def _other_way(plan: Placement, seats: Sequence[Seat], recipe: Recipe) -> list[str]:
    """Why weights could not travel as they do: the engines that live were started for one way."""
    if LEARNER not in plan.specs or plan.sync_backend not in ("nccl", "ipc"):
        return []
    as_it_is = recipe.model_copy(update={"sync": recipe.sync.model_copy(update={"backend": plan.sync_backend})})
    try:
        sync_backend(as_it_is, True, seats)
    except UserError as e:
        return [f"on the nodes that are there, weights could not travel as they do in this run ({e})"]
    return []
