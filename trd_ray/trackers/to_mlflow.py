"""A run in MLflow. `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and MLflow's other variables hold.

    begin -> create_run, or the kept one set to RUNNING     no URI: files in RUN/mlruns
    step  -> log_batch                                      the run's own steps, at the time of each
    rows  -> log_table samples.json                         texts are cells of JSON
    end   -> metrics final/*, artifacts, FINISHED, KILLED or FAILED

MLflow's names have no @, so `avg@4` is `avg-4` there. Its parameters cannot change: what another start of the run
changed (`steps`, replicas) is a tag, `changed.KEY`.
"""

import os
import posixpath
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trd_ray.config import flat
from trd_ray.trackers.kept_run import KeptRun

DEFAULT_EXPERIMENT = "trd-ray"
ENDED = {"done": "FINISHED", "stopped": "KILLED"}
LONGEST = 500  # characters of a parameter: older servers take no more
AT_ONCE = 100  # parameters of a request, as MLflow allows
NOTE = "mlflow.note.content"  # the description that its page shows
LONGEST_NOTE = 4000
_ODD = re.compile(r"[^\w.\- :/]", re.ASCII)


class MlflowRun:
    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Files are MLflow's oldest store, and the only one that its small form writes by itself: it wants to be told.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self.entities = entities
        self.new_client = MlflowClient
        self.client: Any = None
        self.id = ""
        self.names = Names()

    def begin(self, facts: dict[str, Any], kept: KeptRun) -> str:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{facts['directory']}/mlruns"
        self.client = self.new_client(tracking_uri=uri)
        given = facts["tracking"]
        project = given["project"] or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        where = f"{uri} {project}"
        run = self._kept(kept.id) if kept.find(where) else None
        if run is not None:
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._new(project, given["name"] or os.environ.get("MLFLOW_RUN_NAME") or facts["name"])
            kept.begin(run.info.run_id, where)
        self.id = run.info.run_id
        known = run.data.params
        params = {_name(key): _cut(value) for key, value in flat(facts["recipe"])}
        self._params({key: value for key, value in params.items() if key not in known})
        changed = {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        tags = {"directory": facts["directory"], "program": facts["program"]} | facts["versions"] | changed
        tags |= {"group": given["group"]} if given["group"] else {}
        tags |= {f"tag.{_name(tag)}": "true" for tag in given["tags"]}
        for key, value in tags.items():
            self.client.set_tag(self.id, _name(key), value)
        return f"{uri}, experiment {project}, run {self.id}"

    def _new(self, project: str, name: str) -> Any:
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self.client.create_experiment(project)
        return self.client.create_run(experiment, run_name=name)

    def _kept(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(run_id)
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found if found.info.lifecycle_stage == "active" else None

    def _params(self, params: dict[str, str]) -> None:
        new = [self.entities.Param(key, value) for key, value in params.items()]
        for first in range(0, len(new), AT_ONCE):
            self.client.log_batch(self.id, params=new[first : first + AT_ONCE])

    def step(self, step: int, metrics: dict[str, float]) -> None:
        at_ms = int(1000 * metrics.get("time_s", time.time()))
        self._log(metrics, at_ms, step)

    def _log(self, metrics: dict[str, float], at_ms: int, step: int) -> None:
        named = self.names.of(metrics)
        new = [self.entities.Metric(named[name], float(value), at_ms, step) for name, value in metrics.items()]
        for first in range(0, len(new), AT_ONCE):
            self.client.log_batch(self.id, metrics=new[first : first + AT_ONCE])

    def rows(self, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        table = {column: list(cells) for column, cells in zip(columns, zip(*rows, strict=True), strict=True)}
        self.client.log_table(self.id, table, "samples.json")

    def end(self, how: str, said: str, summary: dict[str, float], text: str, files: list[Path]) -> None:
        try:
            self._log(summary, int(1000 * time.time()), 0)
            self.client.set_tag(self.id, "ended", " ".join(filter(None, [how, said]))[:LONGEST_NOTE])
            if text:
                self.client.set_tag(self.id, NOTE, text[:LONGEST_NOTE])
            for file in files:
                self.client.log_artifact(self.id, str(file))
        finally:
            self.client.set_terminated(self.id, ENDED.get(how, "FAILED"))


class Names:
    """Names of metrics as MLflow takes them. Its files cannot hold both `trained_rows` and `trained_rows/y_o`.

    The second, whichever comes later, is written with dots: `trained_rows.y_o`.
    """

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._folders: set[str] = set()

    def of(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self._one(_name(name)) for name in sorted(names)}  # what is above another comes before it

    def _one(self, name: str) -> str:
        above = [name[:at] for at, letter in enumerate(name) if letter == "/"]
        leaf = next((one for one in above if one in self._leaves), None)
        if leaf is not None:
            return leaf + name[len(leaf) :].replace("/", ".")
        if name in self._folders:
            return f"{name}.value"
        self._leaves.add(name)
        self._folders.update(above)
        return name


def _name(name: str) -> str:
    """The name as MLflow takes it: plain letters, digits and _ . - : / and no step upwards."""
    plain = posixpath.normpath(_ODD.sub("-", name)).lstrip("/.")
    return plain[:250] or "-"


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 30]}... ({len(text)} characters)"
