"""A run as Python sees it: what its directory holds, as tables.

    RUN/metrics.jsonl  ->  metrics  (pandas)      RUN/evaluation/*.json   ->  scores  (pandas)
    RUN/rows/*         ->  rows     (Arrow)       RUN/checkpoints/step-*  ->  checkpoints, model

Everything is read when it is asked for, so a Run of a directory whose run goes on shows what is there by then.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_ray.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa

_COLUMNS = ["evaluation", "name", "step", "measure", "value", "low", "high", "problems", "samples"]
_COMPARED = ["difference", "difference_low", "difference_high"]


@dataclass(frozen=True)
class Run:
    """What a run has left in its directory, `path`. `stopped` says which callback ended it early, if one did."""

    path: Path
    stopped: str = ""

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row a step, which is the index; own metrics are the columns own/NAME."""
        import pandas as pd

        from trd_ray.record.directory import RunDirectory

        lines = RunDirectory.open(self.path).read_metrics()
        return pd.DataFrame(lines).set_index("step") if lines else pd.DataFrame(index=pd.Index([], name="step"))

    @property
    def rows(self) -> "pa.Table":
        """Every row of every step (trd_ray.rows.ROW): problem, y_o, y_r, verdicts, token ids."""
        from trd_ray.record.directory import RunDirectory

        return RunDirectory.open(self.path).read_rows().to_table()

    @property
    def scores(self) -> "pd.DataFrame":
        """One row an evaluation and measure (avg@16, pass@4), as shares with the ends of their 95% intervals.

        `difference` is that of the evaluation and the base, paired by problem. An evaluation of a set of
        evaluation.sets has the name of the set before its own: old/base.
        """
        import pandas as pd

        folder = self.path / "evaluation"
        found = [
            line
            for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]
            for line in _measures(file, str(file.relative_to(folder).with_suffix("")))
        ]
        table = pd.DataFrame(found, columns=[*_COLUMNS, *_COMPARED])
        return table.sort_values(["step", "evaluation"], kind="stable").reset_index(drop=True)

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe with every key."""
        from trd_ray import config

        return config.read_tree(self.path / "recipe.yaml", f"recipe {self.path / 'recipe.yaml'}")

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the complete checkpoints, in order."""
        from trd_ray.record.directory import RunDirectory

        return [folder for _, folder in RunDirectory.open(self.path).checkpoints()]

    @property
    def model(self) -> Path:
        """The newest checkpoint as a Hugging Face folder. Raises UserError where there is none."""
        if not (found := self.checkpoints):
            raise UserError(f"the run in {self.path} has no checkpoint: let it write one")
        return found[-1] / "model"

    @property
    def summary(self) -> str:
        """The run's summary.md, "" before there is one."""
        place = self.path / "summary.md"
        return place.read_text() if place.is_file() else ""

    def dataset(self) -> "datasets.Dataset":
        """The rows as a data set, which is not held in memory. Raises UserError where there are none."""
        import datasets

        files: list[Any] = sorted(map(str, (self.path / "rows").glob("step-*.parquet")))
        if not files:
            raise UserError(f"the run in {self.path} has no rows yet: let it finish a step")
        found = datasets.Dataset.from_parquet(files)
        assert isinstance(found, datasets.Dataset)
        return found


def open_run(path: str | Path) -> Run:
    """The run in a directory, also while it goes on. Raises UserError where there is none."""
    from trd_ray.record.directory import RunDirectory

    return Run(RunDirectory.open(path).path)


def _measures(file: Path, evaluation: str) -> list[dict[str, Any]]:
    from trd_ray.score.stats import from_json

    try:
        score = from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is no score of this version of the program ({e!r}): delete it, and resume") from e
    about = {"evaluation": evaluation, "name": score.name, "step": score.step}
    about |= {"problems": score.problems, "samples": score.samples}
    compared = score.paired_with.differences if score.paired_with else {}
    lines = []
    for measure, found in score.scores.items():
        line = about | {"measure": measure, "value": found.value, "low": found.low, "high": found.high}
        if measure in compared:
            paired = compared[measure]
            line |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
        lines.append(line)
    return lines
