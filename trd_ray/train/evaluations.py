"""When a run is evaluated, and under which name: `base`, `step-NNNNNN` at intervals, `trained`.

    if_due(steps) -> engines serve the newest weights -> Avg@k and Pass@k of the held-out problems

An evaluation that a signal or an error ends leaves nothing. The run that resumes makes it first (`missed`).
"""

from collections.abc import Callable

from trd_ray.config import EVALUATED
from trd_ray.score.stats import Score
from trd_ray.session.session import Session
from trd_ray.train.policy import Policy


class Evaluations:
    def __init__(
        self,
        session: Session,
        policy: Policy,
        draw: Callable[[list[dict]], object],
        tell: Callable[[Score], object] = lambda score: None,
    ):
        """`draw` is given the rows of every evaluation, for the timeline, and `tell` its score."""
        self.tell = tell
        self.session = session
        self.policy = policy
        self.draw = draw
        self.recipe = session.recipe.evaluation
        self.problems = session.inputs.held_out  # None where nothing is evaluated
        self.total_steps = session.inputs.total_steps

    def due(self, steps: int) -> str | None:
        """The name of the evaluation that is due after `steps` steps; None if none is."""
        e = self.recipe
        if self.problems is None:
            return None
        if steps == self.total_steps and e.after:
            return "trained"
        return f"step-{steps:06d}" if e.every_steps and steps % e.every_steps == 0 else None

    def if_due(self, steps: int) -> dict[str, float]:
        """Evaluate the newest weights if that is due after `steps` steps; returns Avg@k and Pass@k, or {}."""
        name = self.due(steps)
        if name is None:
            return {}
        self.policy.catch_up()
        score = self.session.evaluate(
            name, steps, self.policy.version, self.problems, self.policy.watch, on_rows=self.draw
        )
        self.tell(score)
        self.session.display.phase("training")
        measures = (f"avg@{score.samples}", f"pass@{2 ** (score.samples.bit_length() - 1)}")
        return {name: score.scores[measure].value for name, measure in zip(EVALUATED, measures, strict=True)}

    def missed(self, steps: int) -> None:
        """Make the evaluation after the last recorded step, if the run was stopped in it."""
        name = self.due(steps) if steps else None
        if name and all(score.name != name for score in self.session.directory.read_evaluations()):
            self.if_due(steps)

    def base(self) -> None:
        """Evaluate the initial weights, before the first step; engines without them get them at the first look."""
        if self.problems is not None and self.recipe.before:
            self.tell(self.session.evaluate("base", 0, 0, self.problems, self.policy.watch, on_rows=self.draw))
