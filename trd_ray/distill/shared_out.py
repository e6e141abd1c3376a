"""A step's examples become the micro-batches of every rank, each with the rows of one teacher.

    examples -> updates (in row order) -> teachers -> ranks (equal cost) -> micro-batches, and whose they are

FSDP's collectives need every rank to run the same ones in the same order. So the i-th micro-batches of all ranks are of
one teacher: a rank that has none of its rows gets an empty one, and still gathers that teacher's weights with the
others. The micro-batches of a teacher stand together, since another teacher's weights are gathered after them.

With one teacher these are `batches.split` and `batches.micro_batches`. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trd_ray.distill.batches import Example, micro_batches, split, token_count
from trd_ray.only_teacher import ONLY


@dataclass(frozen=True)
class SharedOut:
    of_ranks: list[list[list[list[Example]]]]  # [rank][update][micro-batch] -> examples
    teachers: list[list[str]] = field(default_factory=list)  # [update][micro-batch] -> whose, on every rank


def shared_out(
    examples: list[Example],
    *,
    ranks: int,
    updates: int = 1,
    budget_tokens: int,
    packed: bool = False,
    cost: Callable[[Example], float] = token_count,
    teachers: Sequence[str] = (ONLY,),
) -> SharedOut:
    """`teachers` are the names of all, in the order in which their micro-batches come.

    Raises ValueError for an example of another one.
    """
    if strangers := sorted({example.teacher for example in examples} - set(teachers)):
        raise ValueError(f"there are examples of {strangers}, but the teachers are {list(teachers)}")
    found = SharedOut([[] for _ in range(ranks)])
    for [of_update] in split(examples, updates, 1):
        whose: list[str] = []
        of_ranks: list[list[list[Example]]] = [[] for _ in range(ranks)]
        for teacher in teachers:
            if its := [example for example in of_update if example.teacher == teacher]:
                [shares] = split(its, 1, ranks, cost)
                batches = micro_batches(shares, budget_tokens, packed, cost)
                whose += [teacher] * len(batches[0])
                for rank, more in zip(of_ranks, batches, strict=True):
                    rank += more
        found.teachers.append(whose)
        for rank, micro in zip(found.of_ranks, of_ranks, strict=True):
            rank.append(micro)
    return found


def cost_of_each(costs: dict[str, Callable[[Example], float]]) -> Callable[[Example], float]:
    """The cost of an example by its own teacher."""
    return lambda example: costs[example.teacher](example)
