"""When a run is evaluated, and under which name: `base`, `step-NNNNNN` every so many steps, `trained`.

    if_due(steps) -> engines serve the newest weights -> Avg@k and Pass@k of the held-out problems

An evaluation that a signal or an error ends leaves nothing, and the run that resumes makes it first (`missed`).
"""

from collections.abc import Callable

from trd_ray.config import EVALUATED
from trd_ray.session.session import Session
from trd_ray.train.policy import Policy


class Evaluations:
    def __init__(self, session: Session, policy: Policy, draw: Callable[[list[dict]], object]):
        """`draw` is given the rows of every evaluation, for the timeline."""
        self.session, self.policy, self.draw = session, policy, draw
        self.recipe = session.recipe.evaluation
        self.problems = session.inputs.held_out  # None where nothing is evaluated
        self.total_steps = session.inputs.total_steps

    def due(self, steps: int) -> str | None:
        """The name of the evaluation that is due after so many steps."""
        e = self.recipe
        if self.problems is None:
            return None
        if steps == self.total_steps and e.after:
            return "trained"
        return f"step-{steps:06d}" if e.every_steps and steps % e.every_steps == 0 else None

    def if_due(self, steps: int) -> dict[str, float]:
        """Avg@k and Pass@k of the newest weights, if that is due after `steps` steps."""
        name = self.due(steps)
        if name is None:
            return {}
        self.policy.catch_up()
        score = self.session.evaluate(
            name, steps, self.policy.version, self.problems, self.policy.watch, on_rows=self.draw
        )
        self.session.display.phase("training")
        measures = (f"avg@{score.samples}", f"pass@{2 ** (score.samples.bit_length() - 1)}")
        return {name: score.scores[measure].value for name, measure in zip(EVALUATED, measures, strict=True)}

    def missed(self, steps: int) -> None:
        """The evaluation after the last step that is recorded, if the run was stopped in it."""
        name = self.due(steps) if steps else None
        if name and all(score.name != name for score in self.session.directory.read_evaluations()):
            self.if_due(steps)

    def base(self) -> None:
        """Before the first step; the engines hold the initial weights, or get them as soon as one looks."""
        if self.problems is not None and self.recipe.before:
            self.session.evaluate("base", 0, 0, self.problems, self.policy.watch, on_rows=self.draw)
