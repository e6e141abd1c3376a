"""Whose turn it is on the GPUs that engines and learner share (placement=timeshare), and the only order that is legal.

    ENGINES --they rest--> LEARNER --it gives its memory--> NOBODY --weights wake--> SENDING --keys wake--> ENGINES
                              ^                                |                        |
                              +--------- the learner is lost and starts again ----------+

    ENGINES   they sample, refine and are evaluated. The learner may write checkpoints, which takes no memory of a GPU
    LEARNER   it probes, looks closely, trains, or starts and trains steps again
    SENDING   the engines have memory for weights and none for keys; the learner sends the weights

The learner starts first, before there are engines. Where the engines run already, since another run has left them, they
rest before it starts. A learner that is lost needs the GPUs to start again, whoever has them: `make_room` lets the
engines rest, and `go_on` gives the turn back to who had it.

Without `taken` nobody takes turns: everything is done at once, and nothing rests.

Nothing is waited for here: engines and learner have the deadlines. When one of them raises, the run ends, or the
learner starts again; the turn is then that of the last thing that was done.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import StrEnum, auto
from typing import Any, Protocol


class Turn(StrEnum):
    ENGINES = auto()
    LEARNER = auto()
    NOBODY = auto()
    SENDING = auto()


AFTER = {
    Turn.ENGINES: {Turn.LEARNER},
    Turn.LEARNER: {Turn.NOBODY},
    Turn.NOBODY: {Turn.SENDING, Turn.LEARNER},
    Turn.SENDING: {Turn.ENGINES, Turn.LEARNER},
}
SAID = {
    Turn.ENGINES: "the engines have the GPUs",
    Turn.LEARNER: "the learner has the GPUs",
    Turn.NOBODY: "the learner leaves the GPUs to the engines",
    Turn.SENDING: "the engines get weights",
}


class Sleepers(Protocol):
    """The engines of a run."""

    def rest(self) -> None: ...

    def wake_weights(self) -> None: ...

    def wake_keys(self) -> None: ...

    def wake_those_asleep(self, statuses: Mapping[str, Mapping[str, Any]], *, keys: bool) -> None: ...


class Turns:
    def __init__(
        self,
        engines: Sleepers,
        give_gpu: Callable[[], object],
        refresh: Callable[[], object],
        span: Callable[[str], AbstractContextManager[Any]],
        *,
        taken: bool,
        first: Turn = Turn.LEARNER,
        show: Callable[[str], object] = lambda said: None,
    ):
        """`give_gpu` is the learner's. `refresh` sends weights to engines that lack them. `show` is told whose turn."""
        self.sleepers, self.give_gpu, self.refresh, self.span, self.show = engines, give_gpu, refresh, span, show
        self.taken = taken
        self.turn = first
        self.back: Turn | None = None  # whose turn it is again once the learner is back

    def learner(self) -> None:
        """The learner may work when this returns."""
        if self.taken and self.turn is not Turn.LEARNER:
            with self.span("rest"):
                if self.turn is not Turn.NOBODY:
                    self.sleepers.rest()
            self._move(Turn.LEARNER)

    def engines(self, send: Callable[[], object] | None = None) -> None:
        """The engines have the weights that `send` sends, and serve, when this returns."""
        if not self.taken:
            if send:
                send()
            return
        if self.turn is Turn.ENGINES:
            return
        self._towards(Turn.SENDING)
        (send or self.refresh)()
        self._towards(Turn.ENGINES)

    def _towards(self, turn: Turn) -> None:
        """Go on in order until it is that one's turn, without sending anything."""
        while self.turn is not turn:
            with self.span("wake"):
                if self.turn is Turn.LEARNER:
                    self.give_gpu()
                    self._move(Turn.NOBODY)
                elif self.turn is Turn.NOBODY:
                    self.sleepers.wake_weights()
                    self._move(Turn.SENDING)
                else:
                    self.sleepers.wake_keys()
                    self._move(Turn.ENGINES)

    def make_room(self) -> None:
        """A learner is about to start in place of one that was lost, or that moves."""
        self.back = self.back or self.turn
        self.learner()

    def go_on(self) -> None:
        """It is there, with the same weights: the turn is again whose it was."""
        back = self.back or self.turn
        if back is Turn.ENGINES:
            self.engines()
        elif self.taken:
            self._towards(back)
        self.back = None

    def leave(self) -> None:
        """The learner has ended: engines that go on for somebody else are awake when this returns.

        Also in their own turn: where one pool could not rest, the others are at rest. One that is awake does nothing.
        """
        if self.taken:
            self.sleepers.wake_keys()

    def look(self, statuses: Mapping[str, Mapping[str, Any]]) -> None:
        """A pool that should be awake and does not know it is woken."""
        if self.taken and self.turn in (Turn.SENDING, Turn.ENGINES):
            self.sleepers.wake_those_asleep(statuses, keys=self.turn is Turn.ENGINES)

    def shown(self) -> str | None:
        """Whose turn it is, in words; None where nobody takes turns."""
        return SAID[self.turn] if self.taken else None

    def _move(self, to: Turn) -> None:
        if to not in AFTER[self.turn]:
            raise RuntimeError(f"it cannot be the turn of {to} after that of {self.turn}: see train/turns.py")
        self.turn = to
        self.show(SAID[to])
