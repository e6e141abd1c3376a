"""Which problems are held out. A hash of the text decides, so no number of problems and no seed trains on one."""

import zlib
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, TypeVar

HELD_OUT_ONE_IN = 8

Split = Literal["train", "test"]


class AnyChain(Protocol):
    """A problem of a miniature world: a chain of steps."""

    @property
    def problem(self) -> str: ...


C = TypeVar("C", bound=AnyChain)


def is_held_out(chain: AnyChain) -> bool:
    return zlib.crc32(chain.problem.encode()) % HELD_OUT_ONE_IN == 0


def of_split(split: Split, draw: Callable[[], C]) -> Iterator[C]:
    """Chains of this split, without end, as they are drawn."""
    while True:
        if is_held_out(chain := draw()) == (split == "test"):
            yield chain


def distinct(chains: Iterator[C]) -> Iterator[C]:
    seen = set()
    for chain in chains:
        if chain.problem not in seen:
            seen.add(chain.problem)
            yield chain
