"""The learner as the loop sees it: its commands outlive the worker group that carries them out.

    step, sync, score    --> worker group --answer-->
                                  | a rank, the mailbox or Ray Train's controller died, or hangs
                                  v
             another group <- newest checkpoint <- recorded rows of the steps after it, trained again in their order
                                  v
                             the same command again

- The rows of a recorded step are in rows/. Those of a step that has trained, but is not recorded yet, are in memory. So
  no engine is asked for anything. The engines go on meanwhile with what they were given: they sample as far ahead as
  max_staleness allows.
- On a CPU the weights are then the same to the last bit, since the order of rows and the random state are. On a GPU
  they are the same up to the rounding that two equal runs differ by.
- Where the engines have the learner's GPUs in turn, they rest until it has made its weights again (turns.py).
- A weight update under way is given up, so that the engines in it serve again. A checkpoint under way is begun again.
- Only a loss is repeated. An error in the code ends the run, as does a loss that comes again: after
  learner.max_restarts restarts between two recorded steps.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from trd_ray import lineage
from trd_ray.distill.batches import Example
from trd_ray.distill.trainer import Learned, LearnerLost, Trainer
from trd_ray.errors import RunFailed
from trd_ray.record.directory import RunDirectory
from trd_ray.session.endings import cause
from trd_ray.stream.examples import examples_of
from trd_ray.token_values import TokenValues


@dataclass
class Circumstances:
    """What a restart needs to know of the run around the learner."""

    max_restarts: int
    look: Callable[[], object]  # what the run does about once a second while it waits; it may raise to give up
    # The most ranks that there may be, or None -> how many there are now, their nodes.
    seats: Callable[[int | None], tuple[int, Sequence[str]]]
    spec: Callable[[], dict[str, Any]]  # what is new for the ranks, such as the handle of a pool that was replaced
    release: Callable[[], object]  # frees the engines from a weight update that nobody sends any longer
    say: Callable[[str], object]
    phase: Callable[[str], object]
    shown: Callable[[], str] = lambda: "training"  # the phase before, which comes back after a restart
    has_lost_a_node: Callable[[], bool] = lambda: False  # whether a rank sits on one that is dead
    # Where engines have the same GPUs in turn: they rest before a group starts, and then go on as they did.
    make_room: Callable[[], object] = lambda: None
    go_on: Callable[[], object] = lambda: None


class LivingLearner:
    """Counts the steps that made the weights, so that it can make them again."""

    def __init__(self, trainer: Trainer, directory: RunDirectory, done: int, around: Circumstances):
        """The weights begin as those after `done` steps, all of them recorded."""
        self.trainer = trainer
        self.directory = directory
        self.around = around
        self.trained = done  # steps in the weights
        self.recorded = done
        self.last: list[Example] = []  # of the step `trained`, for as long as it is not recorded
        self.restarts = 0  # in the whole run
        self.in_a_row = 0  # since a step was recorded
        self.on_restart: list[Callable[[], object]] = []
        self.mortal = False  # at the end of a run nobody waits for another group
        self.reviving = False

    @property
    def lost(self) -> bool:
        """Whether there is no group that has the weights."""
        return self.trainer.lost or self.reviving

    def step(self, examples: list[Example]) -> Learned:
        """The next step. If it must be made again, it is told once."""
        number = self.trained + 1
        learned = self.outlive(lambda: self.trainer.step(examples, number))
        self.trained, self.last = number, examples
        return learned

    def sync(self, version: int) -> str | None:
        return self.outlive(lambda: self.trainer.sync(version))

    def give_gpu(self) -> None:
        self.outlive(self.trainer.give_gpu)

    def score(self, examples: list[Example]) -> TokenValues:
        return self.outlive(lambda: self.trainer.score(examples))

    def logprobs(self, sequences: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[list[float]]:
        return self.outlive(lambda: self.trainer.logprobs(sequences))

    def wait_until_started(self, look: Callable[[], object]) -> None:
        """Wait for the group that was started; `look` may raise to give up.

        The ranks of a node may be missed before Ray knows that the node is dead. A group that was then seated there
        would wait for that node, so it counts as lost.
        """

        def looks() -> None:
            look()
            if self.around.has_lost_a_node():
                raise LearnerLost("a node of the learner's ranks has died")

        self.trainer.wait_until_started(looks)

    def watch(self) -> None:
        """Replace a group that has ended while nothing was asked of it, so that it starts while rows are awaited."""
        if not self.lost and self.trainer.has_ended():
            self.outlive(lambda: self.wait_until_started(self.around.look))

    def record(self, steps: int) -> None:
        """The rows of the step `steps` are in rows/ by now, and that is progress."""
        self.recorded, self.last, self.in_a_row = steps, [], 0

    def resize(self) -> bool:
        """Another group with the same weights, of the size and on the nodes that are best now.

        The newest checkpoint must hold them. A larger group that does not start in time (somebody else may have taken
        the room) gives way to one of the size before; False then.
        """
        before = self.trainer.ranks
        came_in_time = True
        self.reviving = True
        try:
            try:
                self._restart("the nodes are others now", most=None)
            except TimeoutError as e:
                more = self.trainer.ranks
                if more <= before:
                    raise
                came_in_time = False
                self._restart(f"{e} with {more} ranks, so there are no more than {before} again", most=before)
            self.reviving = False
        except LearnerLost as e:
            self._revive(e)
        return came_in_time

    def figures(self) -> dict[str, Any]:
        """For status.json."""
        return {"ranks": self.trainer.ranks, "restarts": self.restarts, "restarting": self.reviving}

    def outlive(self, command: Callable[[], Any]) -> Any:
        """What `command` returns, in this group or in one that takes its place."""
        while True:
            if self.reviving:  # who revives begins again with whatever is lost meanwhile
                return command()
            try:
                return command()
            except LearnerLost as e:
                self._revive(e)

    def _revive(self, lost: LearnerLost) -> None:
        """Start another group with the same weights. Raises `lost` if that was done too often, or is not wanted."""
        self.reviving = True
        again: LearnerLost | None = lost
        while again:
            self._may_restart(again)
            try:
                self._restart(cause(again), most=self.trainer.ranks)
                again = None
            except LearnerLost as e:
                again = e
        self.reviving = False

    def _may_restart(self, lost: LearnerLost) -> None:
        most = self.around.max_restarts
        if self.mortal or not most:
            raise lost
        if self.in_a_row == most:
            raise RunFailed(
                f"{lost}, and did so {most + 1} times without a finished step in between (learner.max_restarts={most})"
            ) from lost.__cause__
        self.restarts += 1
        self.in_a_row += 1

    def _restart(self, why: str, most: int | None) -> None:
        began = time.monotonic()
        before = self.around.shown()
        self.around.make_room()
        found = self.directory.resume_point()
        done, folder = found or (0, None)
        where = f"checkpoint {done}" if folder else "the initial weights"
        self._tell(f"{why}: the learner starts again from {where}", phase="restarting", step=self.trained)
        self.trainer.restart(
            seats=lambda: self.around.seats(most),
            resume_from=str(folder) if folder else None,
            rows_sha256=sha256_of(self.directory, done, folder),
            **self.around.spec(),
        )
        for forget in self.on_restart:  # what the old group was at; it writes no longer
            forget()
        self.around.release()
        self.wait_until_started(self.around.look)
        started = time.monotonic()
        for number in range(done + 1, self.trained + 1):
            self.around.phase(f"training step {number} of {self.trained} again")
            self.trainer.step(self._examples(number), number)
            self.around.look()
        if self.around.shown() != before:
            self.around.phase(before)
        self.around.go_on()
        seconds = time.monotonic() - began
        again = self.trained - done
        ranks = self.trainer.ranks
        self._tell(
            f"the learner goes on after {seconds:.0f} s, with {ranks} rank{'s' * (ranks > 1)}: "
            f"{started - began:.0f} s to start, {again} steps trained again",
            phase="restarted", step=self.trained, seconds=seconds, steps_again=again, ranks=ranks,
        )  # fmt: skip

    def _examples(self, step: int) -> list[Example]:
        if step > self.recorded:
            return self.last
        return examples_of(self.directory.read_step(step))

    def _tell(self, said: str, **facts: Any) -> None:
        self.around.say(said)
        self.directory.event("learner", said=said, **facts)


def sha256_of(directory: RunDirectory, done: int, checkpoint: Path | None) -> str:
    """Which rows made the weights after `done` steps (see trd_ray.lineage): as the checkpoint says, else by rows/."""
    if checkpoint is None:
        return lineage.START
    said = directory.state_of(checkpoint).get("rows_sha256")
    return said or lineage.of_ledger((directory.path / "rows").glob("step-*.parquet"), until=done)
