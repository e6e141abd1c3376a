"""An evaluation of the weights that the engines serve, on evaluation.path or on one set of evaluation.sets.

session, a name, problems  ->  evaluated()  ->  a Score, compared with the base of the same set, written and warned of
"""

from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

from trd_ray.config import Recipe
from trd_ray.record import warnings
from trd_ray.record.directory import RunDirectory
from trd_ray.record.display import Display
from trd_ray.record.guards import difference, is_lost, of_guards, of_loss
from trd_ray.record.time_left import shown_name
from trd_ray.score import stats
from trd_ray.stream.answers import evaluation_rows
from trd_ray.stream.judging import JudgeAt
from trd_ray.views import Views


class Evaluates(Protocol):
    """The parts of a session that an evaluation uses."""

    directory: RunDirectory
    display: Display
    views: Views
    room: Any
    pools: dict[str, Any]

    @property
    def recipe(self) -> Recipe: ...

    def judge(self) -> JudgeAt | None: ...

    def warn(self, found: dict[str, str]) -> None: ...


def evaluated(
    session: Evaluates, name: str, step: int, version: int, problems: pa.Table,
    while_waiting: Callable[[], object], on_rows: Callable[[list[dict]], object], of: str = "",
) -> stats.Score:  # fmt: skip
    """Sample, verify and score the problems of the set `of` with the weights of `version`, and write the score.

    `while_waiting` is called meanwhile; `on_rows` gets the rows that are scored.
    """
    r = session.recipe
    e = r.evaluation.of(of)
    shown = shown_name(name, of)
    session.display.phase(f"evaluating {shown}: {problems.num_rows} problems x {e.samples} samples")
    session.display.evaluating(shown, 0, problems.num_rows * e.samples, 0)
    rows = evaluation_rows(
        r.model_copy(update={"evaluation": e}), problems, session.views, session.pools["sampler"], step=step,
        min_version=version, judge=session.judge(), while_waiting=while_waiting,
        on_progress=lambda done, total, passed: session.display.evaluating(shown, done, total, passed),
    )  # fmt: skip
    on_rows(rows)
    score = stats.score(rows, name=name, step=step, version=version, resamples=e.bootstrap, seed=r.seed)
    base = next((one for one in session.directory.read_evaluations(of) if one.name == "base"), None)
    if base and name != "base" and base.per_problem.keys() == score.per_problem.keys():
        score = stats.compare(score, base, resamples=e.bootstrap, seed=r.seed)
    session.room.having(f"the evaluation {shown}", lambda: session.directory.write_evaluation(score, rows, of))
    session.directory.event("evaluation", **told(score, of, r, session.directory.read_evaluations(of)))
    where = f"evaluation.sets.{of}" if of else "evaluation.path"
    session.warn(warnings.of_score(score, r, e.response_tokens, where))
    session.warn(warnings.of_unjudged(row["y_o"]["detail"] for row in rows))
    session.warn(of_guards({of: [score]}, r))
    return score


def told(score: stats.Score, of: str, recipe: Recipe, scores: list[stats.Score]) -> dict[str, Any]:
    """The event of an evaluation: its Avg@k, and how far it is from the base and from the best of earlier `scores`."""
    measure = f"avg@{score.samples}"
    avg = score.scores[measure]
    guard = of in recipe.evaluation.sets and recipe.evaluation.sets[of].guard
    found: dict[str, Any] = {"name": score.name, "of": of, "step": score.step, "avg": avg.value}
    found["said"] = f"{score.name}{f' on {of}' if of else ''}: Avg@{score.samples} {stats.percent(avg)}"
    if change := difference(score):
        found["change"] = [change.value, change.low, change.high]
        found["said"] += f", {stats.percent(change, signed=True)} from the base"
    earlier = [one for one in scores if one.step < score.step and one.per_problem.keys() == score.per_problem.keys()]
    if earlier:
        best = max(earlier, key=lambda one: one.scores[f"avg@{one.samples}"].value)
        fell = stats.compare(score, best, resamples=recipe.evaluation.bootstrap, seed=recipe.seed)
        assert fell.paired_with
        from_best = fell.paired_with.differences[measure]
        found["best"] = {"name": best.name, "step": best.step}
        found["best"]["change"] = [from_best.value, from_best.low, from_best.high]
    if guard and is_lost(score):
        found |= {"lost": True, "lost_said": of_loss(of, score)}
    return found
