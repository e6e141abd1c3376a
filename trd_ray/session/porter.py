"""A run's porter: an actor next to its driver, for those who reach its cluster but do not see its directory.

    trd status NAME --address HEAD:PORT  -->  Porter, in Ray's namespace trd_ray  -->  files of the run directory

It does what a program on the driver's node would do with these files, and nothing else: it holds nothing, and a run
does not notice whether it has one. It ends with the run; after that the directory is what there is. A local cluster has
none, since whoever reaches that one sees the directory.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trd_ray.errors import UserError
from trd_ray.record.events import append_event, last_events
from trd_ray.session.asking import ask
from trd_ray.session.door import Door
from trd_ray.session.logs import log_named, logs_of, more, tail
from trd_ray.session.seen import look_at

NAMESPACE = "trd_ray"
PREFIX = "run"
CALLS = 32  # that may wait in it at a time
_PLAIN = re.compile(r"[^\w.-]+")


class Porter:
    def __init__(self, directory: str):
        self.directory = Path(directory)

    def __repr__(self) -> str:  # how Ray's dashboard names it
        return f"Porter({self.directory.name})"

    def look(self) -> dict[str, Any]:
        return look_at(self.directory)

    def ask(self, verb: str, arguments: dict[str, Any], by: str, timeout_s: float) -> tuple[bool, str]:
        """(whether it is so, the sentence): exceptions of ours would reach the caller wrapped in Ray's."""
        try:
            return True, ask(self.directory, verb, arguments, by, timeout_s)
        except UserError as e:
            return False, str(e)

    def events(self, count: int) -> list[dict[str, Any]]:
        return last_events(self.directory, count)

    def logs(self) -> dict[str, int]:
        """The logs that there are, and their bytes."""
        return {name: file.stat().st_size for name, file in logs_of(self.directory).items()}

    def log(self, name: str, lines: int | None, start: int = 0) -> tuple[bool, str, int]:
        """(whether there is one, text or sentence, where it ends): the last `lines`, or with None what is new."""
        try:
            file = log_named(self.directory, name)
            return True, *(more(file, start) if lines is None else tail(file, lines))
        except UserError as e:
            return False, str(e), 0


@contextmanager
def porter(door: Door) -> Iterator[None]:
    """A porter for the run of this door, while the block lasts, on a cluster that is connected.

    The run goes on without one if Ray makes none.
    """
    actor = None
    try:
        actor = _porter(door.path)
    except Exception as e:  # such as that of a control service which is busy
        why = " ".join(str(e).split())[:300]
        append_event(door.path, "warning", said=f"the run is not found by its name on the cluster ({why})")
    try:
        yield
    finally:
        if actor is not None:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _porter(directory: Path) -> Any:
    here = ray.get_runtime_context().get_node_id()
    made: Any = ray.remote(Porter).options(
        name=name_of(directory), namespace=NAMESPACE, num_cpus=0, max_concurrency=CALLS, max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )  # fmt: skip
    return made.remote(str(directory))


def name_of(directory: Path) -> str:
    """The actor's name: the run's folder, Ray's number of the job, and the name under which the job was submitted."""
    number = ray.get_runtime_context().get_job_id()
    return "/".join([PREFIX, plain(directory.name), number, submission() or "-"])


def plain(folder: str) -> str:
    """A folder's name with no character that a name of Ray's may not have."""
    return _PLAIN.sub("-", folder)


def submission() -> str | None:
    """The submission id of this job, if it was submitted."""
    with contextlib.suppress(ValueError, AttributeError):
        return (
            json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")).get("metadata", {}).get("job_submission_id")
        )
    return None


def porters() -> dict[str, tuple[str, str, str]]:
    """The porters of the cluster that this process is connected to: actor name -> (folder, job, submission)."""
    found = {}
    listed: Any = ray.util.list_named_actors(all_namespaces=True)
    for actor in listed:
        parts = actor["name"].split("/")
        if actor["namespace"] == NAMESPACE and len(parts) == 4 and parts[0] == PREFIX:
            found[actor["name"]] = (parts[1], parts[2], parts[3])
    return found
