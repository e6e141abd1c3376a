"""A run in W&B. `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_DIR` and W&B's other variables hold.

    begin -> wandb.init(id=..., resume="allow")      offline: WANDB_DIR or the run directory, in wandb/offline-run-*
    step  -> run.log(metrics, step=step)             the run's own steps
    rows  -> a wandb.Table, samples                  texts are cells, never Html
    end   -> summary, an artifact, finish

Its own process has wandb's service below it, which ends with it: wandb watches for that.
"""

import os
import secrets
from pathlib import Path
from typing import Any

from trd_ray.trackers.kept_run import KeptRun

DEFAULT_PROJECT = "trd-ray"
LONGEST_NOTE = 4000
EXIT_CODES = {"done": 0, "stopped": 130}  # what W&B shows as finished, and as failed


class WandbRun:
    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # a trainer reports nobody's errors to a third party
        import wandb

        self.wandb: Any = wandb
        self.run: Any = None

    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        given, outside = facts["tracking"], os.environ.get
        project = given["project"] or outside("WANDB_PROJECT") or DEFAULT_PROJECT
        where = "/".join(filter(None, [outside("WANDB_ENTITY"), project]))
        found = kept.find(where)
        run_id = kept.id if found else outside("WANDB_RUN_ID") or secrets.token_hex(4)
        # Not what this process prints, which is its log; and no code, which is the package's.
        settings = self.wandb.Settings(console="off", silent=True, disable_code=True)
        self.run = self.wandb.init(
            project=project, name=given["name"] or outside("WANDB_NAME") or facts["name"], id=run_id, resume="allow",
            group=given["group"], tags=given["tags"] or None, job_type=outside("WANDB_JOB_TYPE") or facts["program"],
            dir=outside("WANDB_DIR") or facts["directory"], config=facts["recipe"], allow_val_change=True,
            settings=settings,
        )  # fmt: skip
        self.run.config.update({"trd": facts["versions"] | {"directory": facts["directory"]}}, allow_val_change=True)
        if not found:
            kept.begin(run_id, where)
        if self.run.settings._offline:
            folder = Path(self.run.dir).parent
            return f"offline, in {folder}; `wandb sync {folder}` uploads it"
        return str(self.run.url or "disabled (WANDB_MODE)")

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def rows(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        self.run.log({"samples": self.wandb.Table(columns=columns, data=rows)}, step=step)

    def end(self, how: str, said: str, summary: dict[str, float], text: str, files: list[Path]) -> None:
        try:
            self.run.summary.update(summary | {"ended": how})
            if text and not os.environ.get("WANDB_NOTES"):
                self.run.notes = text[:LONGEST_NOTE]
            if files:
                artifact = self.wandb.Artifact(f"run-{self.run.id}", type="report", description=said[:500] or None)
                for file in files:
                    artifact.add_file(str(file))
                self.run.log_artifact(artifact)
        finally:
            self.run.finish(exit_code=EXIT_CODES.get(how, 1))
