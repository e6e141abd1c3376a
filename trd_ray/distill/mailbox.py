"""Where the driver leaves commands for the learner's ranks, and the ranks their answers and their signs of life.

    driver --post--> Mailbox --take--> rank 0..n --answer--> Mailbox --result--> driver
                        ^--beat-- every process of the group, from a thread of its own

Every method may be called again if its answer was lost on the way, so Ray does that (max_task_retries).

- A process that was stopped, but has not died, beats no longer. One that compiles, or that waits in a collective, does.
- A rank is silent too that was never heard of, once Ray knows the processes of all ranks to be up.
- Silence is counted only while the driver waits for a result, and at most PAUSE_S of it between two looks. So a machine
  that slept does not find everybody silent when it wakes.
- Crash: whatever the mailbox holds is lost with it, the ranks end with it, and the group is started again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.actor import ActorHandle

PAUSE_S = 3.0  # the driver looks every second
CONTROLLER = "controller"

Member = int | str  # a rank, or Ray Train's CONTROLLER


@dataclass
class Command:
    # "start" | "step" | "sync" | "logprobs" | "score" | "give_gpu" | "begin_checkpoint" | "finish_checkpoint" | "stop"
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    per_rank: list[Any] | None = None  # one argument a rank, e.g. its shard


class Result(NamedTuple):
    done: bool
    value: Any  # rank 0's answer, which is that of every rank
    parts: list[Any]  # what each rank has found of its own share, by rank; None where it has none to tell
    times: dict[int, tuple[float, float]]  # when each rank was at it
    silent_s: dict[Member, float]  # how long each process of the group has not been heard of


class Mailbox:
    """Commands in order, and the answers of all ranks. Async, so that many callers can wait in it."""

    def __init__(self, ranks: int, monotonic: Callable[[], float] = time.monotonic):
        self.ranks = ranks
        self.commands: dict[int, Command] = {}
        self.answers: dict[int, dict[int, tuple[Any, Any]]] = {}  # number -> rank -> value, part
        self.times: dict[int, dict[int, tuple[float, float]]] = {}  # as `answers`: when each rank carried it out
        self.refusal: str | None = None
        self.handles: dict[Member, ActorHandle] = {}
        self.silent_s: dict[Member, float] = {}
        self.monotonic = monotonic
        self.looked: float | None = None
        self.changed = asyncio.Condition()

    def __repr__(self) -> str:  # how Ray's dashboard names it
        return f"Mailbox({self.ranks} ranks)"

    async def post(self, number: int, command: Command) -> None:
        """A command, numbered from 0. Those before it that nobody waits for any longer are still carried out."""
        async with self.changed:
            self.commands[number] = command
            for before in [n for n in self.answers if n < number and n not in self.commands]:
                del self.answers[before], self.times[before]
            self.looked = None  # the driver did something else meanwhile
            self.changed.notify_all()

    async def take(self, number: int, rank: int) -> Command:
        async with self.changed:
            await self.changed.wait_for(lambda: number in self.commands)
        command = self.commands[number]
        share = None if command.per_rank is None else [command.per_rank[rank]]
        return Command(command.name, command.arguments, share)

    async def answer(self, number: int, rank: int, value: Any, begin: float, end: float, part: Any = None) -> None:
        """`part` may be large. It is here, on the driver's node, so it outlives the rank that has found it."""
        async with self.changed:
            self.times.setdefault(number, {})[rank] = begin, end
            self.answers.setdefault(number, {})[rank] = value, part
            if len(self.answers[number]) == self.ranks:
                self.commands.pop(number, None)  # its shards may be freed
            self.changed.notify_all()

    async def result(self, number: int, wait_s: float) -> Result:
        """What came of a command; not done if some rank has not answered in `wait_s`."""
        done = False
        with contextlib.suppress(TimeoutError):
            async with self.changed:
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: len(self.answers.get(number, {})) == self.ranks), wait_s
                )
            done = True
        self._count_silence()
        if not done:
            return Result(False, None, [], {}, self.silent_s)
        answers = self.answers[number]
        parts = [answers[rank][1] for rank in range(self.ranks)]
        return Result(True, answers[0][0], parts, self.times[number], self.silent_s)

    def _count_silence(self) -> None:
        now = self.monotonic()
        passed = 0.0 if self.looked is None else min(now - self.looked, PAUSE_S)
        self.looked = now
        self.silent_s = {who: seconds + passed for who, seconds in self.silent_s.items()}

    async def beat(self, who: Member, handle: ActorHandle) -> None:
        """A process of the group lives. `handle` is its actor."""
        self.handles[who] = handle
        self.silent_s[who] = 0.0

    async def expect(self) -> None:
        """The processes of all ranks are up."""
        for rank in range(self.ranks):
            self.silent_s.setdefault(rank, 0.0)

    async def members(self) -> dict[Member, ActorHandle]:
        return self.handles

    async def refuse(self, message: str) -> None:
        """A rank tells why it ends, where that is something the user can fix."""
        self.refusal = self.refusal or message

    async def refused(self) -> str | None:
        return self.refusal
