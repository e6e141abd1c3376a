"""When a run is evaluated, and under which name: `base`, `step-NNNNNN` at intervals, `trained`.

    if_due(steps) -> engines serve the newest weights -> Avg@k and Pass@k of the held-out problems of every set

The sets are evaluation.path, whose metrics have the names that they have where it is alone, and those of
evaluation.sets. An evaluation that a signal or an error ends leaves nothing. The run that resumes makes it first
(`missed`).
"""

from collections.abc import Callable

import pyarrow as pa

from trd_ray.config import evaluated, lost
from trd_ray.record.guards import is_lost
from trd_ray.record.time_left import Due
from trd_ray.score.stats import Score
from trd_ray.session.session import Session
from trd_ray.train.policy import Policy


class Evaluations:
    def __init__(
        self,
        session: Session,
        policy: Policy,
        draw: Callable[[list[dict]], object],
        tell: Callable[[Score, str], object] = lambda score, of: None,
    ):
        """`draw` is given the rows of every evaluation, for the timeline, and `tell` its score and its set."""
        self.tell = tell
        self.session = session
        self.policy = policy
        self.draw = draw
        self.recipe = session.recipe.evaluation
        self.total_steps = session.inputs.total_steps
        # Problems of every set that is evaluated; that of evaluation.path has no name.
        self.problems: dict[str, pa.Table] = {}
        if session.inputs.held_out is not None:
            self.problems[""] = session.inputs.held_out
        self.problems |= session.inputs.held_out_sets

    def due(self, steps: int) -> str | None:
        """The name of the evaluation that is due after `steps` steps; None if none is."""
        e = self.recipe
        if not self.problems:
            return None
        if steps == self.total_steps and e.after:
            return "trained"
        return f"step-{steps:06d}" if e.every_steps and steps % e.every_steps == 0 else None

    def planned(self) -> list[Due]:
        """Every evaluation after a step, of every set."""
        samples = {of: rows.num_rows * self.recipe.of(of).samples for of, rows in self.problems.items()}
        names = {steps: self.due(steps) for steps in range(1, self.total_steps + 1)}
        return [Due(steps, name, of, n) for steps, name in names.items() if name for of, n in samples.items()]

    def if_due(self, steps: int) -> dict[str, float]:
        """Evaluate the newest weights if that is due after `steps` steps; returns the metrics of all sets, or {}."""
        name = self.due(steps)
        return self._made(name, steps, list(self.problems)) if name else {}

    def missed(self, steps: int) -> None:
        """Make what is missing of the evaluation after the last recorded step, if the run was stopped in it."""
        name = self.due(steps) if steps else None
        if name and (missing := [of for of in self.problems if not self._is_scored(name, of)]):
            self._made(name, steps, missing)

    def base(self) -> None:
        """Evaluate the initial weights, before the first step; engines without them get them at the first look."""
        if self.recipe.before:
            for of, problems in self.problems.items():
                score = self.session.evaluate("base", 0, 0, problems, self.policy.watch, on_rows=self.draw, of=of)
                self.tell(score, of)

    def _made(self, name: str, steps: int, sets: list[str]) -> dict[str, float]:
        self.policy.catch_up()
        found: dict[str, float] = {}
        for of in sets:
            score = self.session.evaluate(
                name, steps, self.policy.version, self.problems[of], self.policy.watch, on_rows=self.draw, of=of
            )
            self.tell(score, of)
            measures = (f"avg@{score.samples}", f"pass@{2 ** (score.samples.bit_length() - 1)}")
            found |= {
                metric: score.scores[measure].value for metric, measure in zip(evaluated(of), measures, strict=True)
            }
            if of and self.recipe.sets[of].guard:
                found[lost(of)] = float(is_lost(score))
        if steps < self.total_steps:
            self.session.display.phase("training")
        return found

    def _is_scored(self, name: str, of: str) -> bool:
        return any(score.name == name for score in self.session.directory.read_evaluations(of))
