"""Which actor sits on which GPUs of which machine.

    what each actor needs, the machines  ->  seated()  ->  a Seat for each actor, or Unseated: who found none, and why

- The learner's ranks sit together on one machine where they fit, since each layer gathers weights from all of them.
- An engine sits on one machine, with all of its tensor-parallel workers.
- Two ranks never share a GPU. Two engines of one pool do so only where there is no other place.
- An engine that has its GPU in turn with a rank sits on that of a rank, and nowhere else.
- On a machine the GPUs of engines come first, in the order of the pools: `trd_ray.engine.reservation` takes them from
  Ray in that order, and the learner gets what is left.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from trd_ray.config import role_of
from trd_ray.preflight.machines import Machine

EPSILON = 1e-6
SHOWN_NODES = 4  # of those that cannot take an actor
LEARNER = "learner"


@dataclass(frozen=True)
class Need:
    """One actor: an engine with its tensor-parallel workers, or a learner rank."""

    actor: str
    number: int
    cpus: float
    gpus: float  # 0, a share of one, or whole ones of one machine
    memory_gib: float = 0.0  # of the host
    least_gpu_gib: float = 0.0  # a GPU with less would be refused
    beside_rank: bool = False  # it has its GPU in turn with a rank

    def __str__(self) -> str:
        return f"{self.actor} {self.number}"


@dataclass(frozen=True)
class Seat:
    actor: str
    number: int
    machine: int  # its place in the list of machines
    gpus: tuple[int, ...]  # of the machine, in the order in which Ray numbers them
    share: float  # of each of these GPUs


@dataclass(frozen=True)
class Unseated:
    need: Need
    why: str  # what each machine has left


@dataclass
class _Room:
    """What is left of a machine."""

    place: int
    machine: Machine
    cpus: float
    memory_gib: float
    gpus: list[float] = field(default_factory=list)  # the share of each that is left
    holders: list[list[Seat]] = field(default_factory=list)  # who sits on each
    ranks: int = 0  # of the learner here

    @classmethod
    def of(cls, place: int, machine: Machine, counts_memory: bool) -> "_Room":
        memory = machine.memory_gib if counts_memory and machine.memory_gib is not None else math.inf
        return cls(place, machine, machine.cpus, memory, [1.0] * machine.gpus, [[] for _ in range(machine.gpus)])

    @property
    def free(self) -> int:
        return sum(share >= 1 - EPSILON for share in self.gpus)

    def candidates(self, need: Need) -> list[int] | None:
        """The GPUs that the need would take here, none for one without, or None if it does not fit."""
        if need.cpus > self.cpus + EPSILON or need.memory_gib > self.memory_gib + EPSILON:
            return None
        if not need.gpus:
            return []
        if (self.machine.gpu_gib or math.inf) < need.least_gpu_gib:
            return None
        if need.gpus >= 1:
            whole = [i for i, share in enumerate(self.gpus) if share >= 1 - EPSILON]
            return whole[: round(need.gpus)] if len(whole) >= round(need.gpus) else None
        fits = [i for i, share in enumerate(self.gpus) if share >= need.gpus - EPSILON]
        if need.actor == LEARNER:
            fits = [i for i in fits if not self.of_one(LEARNER, i)]
        if need.beside_rank:
            fits = [i for i in fits if self.of_one(LEARNER, i)]
        best = min(fits, key=lambda i: (self.of_one(need.actor, i), self.gpus[i], i), default=None)
        return None if best is None else [best]

    def of_one(self, actor: str, gpu: int) -> int:
        """How many of an actor's kind sit on a GPU."""
        return sum(seat.actor == actor for seat in self.holders[gpu])

    def take(self, need: Need) -> Seat | None:
        gpus = self.candidates(need)
        if gpus is None:
            return None
        seat = Seat(need.actor, need.number, self.place, tuple(gpus), min(1.0, need.gpus))
        self.hold(seat, need)
        return seat

    def hold(self, seat: Seat, need: Need) -> None:
        self.cpus -= need.cpus
        self.memory_gib -= need.memory_gib
        self.ranks += need.actor == LEARNER
        for i in seat.gpus:
            self.gpus[i] -= seat.share
            self.holders[i].append(seat)

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPUs"] if math.isfinite(self.cpus) else []
        parts += [f"{self.memory_gib:.1f} GiB of memory"] if math.isfinite(self.memory_gib) else []
        if self.machine.gpus:
            shared = [f"{share:g} of another" for share in self.gpus if EPSILON < share < 1 - EPSILON]
            parts.insert(0, " and ".join([f"{self.free} GPUs", *shared[:2]]))
        return f"{self.machine.name} has {', '.join(parts) or 'nothing'} left"


def seated(
    needs: Sequence[Need],
    machines: Sequence[Machine],
    counts_memory: bool = True,
    sitting: Sequence[tuple[Seat, Need]] = (),
) -> list[Seat] | Unseated:
    """A seat for each need, in their order. Where several ways work, the learner's ranks share a machine.

    Those who are `sitting` already stay where they are.
    """
    failed: list[Unseated] = []
    for ways in (needs, [replace(need, least_gpu_gib=0.0) for need in needs]):
        for order, learners in _orders(ways, machines):
            found = _fill(order, machines, learners, counts_memory, sitting)
            if not isinstance(found, Unseated):
                place = {(need.actor, need.number): i for i, need in enumerate(needs)}
                as_they_are = {seat.machine for seat, _ in sitting}
                return sorted(_numbered(found, as_they_are), key=lambda seat: place[seat.actor, seat.number])
            failed.append(found)
    return failed[-1]


def _orders(needs: Sequence[Need], machines: Sequence[Machine]) -> Iterator[tuple[list[Need], int | None]]:
    """Who chooses before whom, and the machine that holds all ranks, if one does."""
    ranks = [need for need in needs if need.actor == LEARNER]
    others = sorted((need for need in needs if need.actor != LEARNER), key=lambda need: (-need.gpus, -need.cpus))
    if ranks:
        for place in range(len(machines)):
            yield [*ranks, *others], place
    yield [*ranks, *others], None
    if not any(need.beside_rank for need in needs):
        yield [*others, *ranks], None


def _fill(
    order: list[Need],
    machines: Sequence[Machine],
    learners: int | None,
    counts_memory: bool,
    sitting: Sequence[tuple[Seat, Need]],
) -> list[Seat] | Unseated:
    rooms = [_Room.of(place, machine, counts_memory) for place, machine in enumerate(machines)]
    for seat, need in sitting:
        rooms[seat.machine].hold(seat, need)
    seats = []
    for need in order:
        allowed = [rooms[learners]] if need.actor == LEARNER and learners is not None else rooms
        if need.actor == LEARNER:  # where most of the ranks can stay together
            tried = sorted(allowed, key=lambda room: (-room.ranks, -room.free, room.place))
        elif need.gpus:  # the machine that is fullest, so that large engines find whole ones
            tried = sorted(allowed, key=lambda room: (_shares(room, need), room.free, room.place))
        else:
            tried = sorted(allowed, key=lambda room: (-room.cpus, room.place))
        seat = next((seat for room in tried if (seat := room.take(need))), None)
        if seat is None:
            shown = sorted(allowed, key=lambda room: (-room.free, -room.cpus, room.place))[:SHOWN_NODES]
            more = f"; {len(allowed) - len(shown)} more have no more" if len(allowed) > len(shown) else ""
            return Unseated(need, "; ".join(map(str, shown)) + more)
        seats.append(seat)
    return seats


def _shares(room: _Room, need: Need) -> int:
    """How many engines of its own pool a need would meet on its GPU there."""
    gpus = room.candidates(need)
    return max((room.of_one(need.actor, i) for i in gpus or ()), default=0)


def _numbered(seats: list[Seat], as_they_are: set[int]) -> list[Seat]:
    """The same seats, with the GPUs of each machine numbered anew: those of engines first, those of ranks alone last.

    Where somebody sat before, the numbers stay `as_they_are`, since his do. Ranks are numbered by their machine and
    GPU, as Ray Train does.
    """
    order = {name: i for i, name in enumerate(["sampler", "refiner", "judge", LEARNER, "verifier"])}  # of each role
    numbers: dict[tuple[int, int], int] = {}
    taken: dict[int, int] = {}
    for seat in sorted(seats, key=lambda seat: (order[role_of(seat.actor)], seat.actor, seat.number)):
        for gpu in seat.gpus:
            if seat.machine in as_they_are:
                numbers[seat.machine, gpu] = gpu
            elif (seat.machine, gpu) not in numbers:
                numbers[seat.machine, gpu] = taken.get(seat.machine, 0)
                taken[seat.machine] = taken.get(seat.machine, 0) + 1
    seats = [replace(seat, gpus=tuple(sorted(numbers[seat.machine, gpu] for gpu in seat.gpus))) for seat in seats]
    ranks = [seat for seat in seats if seat.actor == LEARNER]
    machines = list(dict.fromkeys(seat.machine for seat in sorted(ranks, key=lambda seat: seat.number)))
    ranks.sort(key=lambda seat: (machines.index(seat.machine), seat.gpus, seat.number))
    engines = [seat for seat in seats if seat.actor != LEARNER]
    return [*engines, *(replace(seat, number=number) for number, seat in enumerate(ranks))]
