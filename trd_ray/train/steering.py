"""What a training run shows at its door and can be asked for there: figures, a pause, a checkpoint.

Training --> Steering --> session.door: status.json
                      <-- "pause", "unpause", "checkpoint"
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from trd_ray.config import role_of
from trd_ray.record.clock import HANDOVERS, Clock
from trd_ray.session.pausing import Pausing
from trd_ray.session.session import Session
from trd_ray.train.checkpoints import Checkpoints
from trd_ray.train.policy import Policy

# The metrics of the last step that a screen has room for, and those that say what took its time.
SHOWN = ("y_o/passed", "y_r/passed", "kl/mean", "loss", "sync/gap_mean", "staleness/mean", "evaluation/avg")


class Progressed(NamedTuple):
    done: int  # steps that are recorded
    trained: int  # steps in the learner's weights
    recorded: dict[str, Any]  # metrics of the last step


class Steering:
    def __init__(
        self,
        session: Session,
        clock: Clock,
        policy: Policy,
        checkpoints: Checkpoints,
        now: Callable[[], Progressed],
    ):
        self.session = session
        self.clock = clock
        self.policy = policy
        self.checkpoints = checkpoints
        self.now = now
        self.pausing = Pausing(session)
        session.door.on("checkpoint", self._checkpoint)
        session.door.shows("doing", self.doing)
        session.door.shows("last_step", self._last_step)
        session.door.shows("version", lambda: {"learner": policy.version, "served": policy.served})
        session.door.shows("checkpoint", self._newest)

    def rest(self, save: Callable[[], object]) -> None:
        """Rest while somebody wants that; `save` writes a checkpoint that is asked for meanwhile."""

        def look() -> None:
            self.policy.watch()
            if self.checkpoints.asked and self.now().done:  # before the first step there is nothing to save
                save()
                self.checkpoints.asked = False
            self.checkpoints.finish(wait=False)

        if self.pausing.asked:
            with self.clock.span("pause"):
                self.pausing.rest(look)

    def over(self) -> None:
        """No step comes any more."""
        self.pausing.over()
        self.session.door.off("checkpoint")

    def _checkpoint(self, arguments: dict[str, Any]) -> str:
        done, trained, _ = self.now()
        if done and done == trained == self.checkpoints.begun:
            return f"checkpoint {done} holds all that is recorded already"
        self.checkpoints.asked = True
        if self.pausing.resting and done:
            return f"checkpoint {done} is written now"
        return f"checkpoint {max(done + 1, trained)} is written when that step is recorded"

    def doing(self) -> dict[str, Any] | None:
        """The part of a step that is under way, since when; while rows are awaited also what keeps them."""
        if not self.clock.under_way:
            return None
        handover = next((one for one in self.clock.under_way if one[0] in HANDOVERS), None)
        name, since = handover or self.clock.under_way[0]
        return {"what": name, "since": since} | ({"waits_for": self._stage()} if name == "wait" else {})

    def _stage(self) -> str | None:
        """The pool that the awaited rows are in: the last one of the stream that has requests, since it ends them."""
        pools = self.session.figures.last
        under_way = {name: pool.get("running", 0) + pool.get("waiting", 0) for name, pool in pools.items()}
        last_first = sorted(under_way, key=role_of)  # the judge, then refiners, then the sampler
        return next((name for name in last_first if under_way[name]), None)

    def _last_step(self) -> dict[str, Any]:
        recorded = self.now().recorded
        return {name: recorded[name] for name in recorded if name in SHOWN or name.startswith("seconds/")}

    def _newest(self) -> dict[str, Any]:
        c = self.checkpoints
        found = c.directory.checkpoints()
        return {
            "step": found[-1][0] if found else None,
            "path": str(found[-1][1]) if found else None,
            "writing": c.writing[0] if c.writing else None,
            "asked": c.asked,
        }
