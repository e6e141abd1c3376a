"""`trd doctor [RECIPE]`: what this machine, or every node of a cluster, has and lacks, each with its remedy.

    recipe, if one is named  ->  Wanted  ->  this machine, or every node (--address, RAY_ADDRESS, cluster.address)
                                         ->  findings  ->  a table, or --json;  0, or 2 where something needed lacks

Nothing is started but a process that imports torch, a sandbox and, on a cluster, one task a node. It takes less than a
minute, since every question has a deadline.
"""

import contextlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trd_ray import made_here
from trd_ray.doctor import against_lock, findings
from trd_ray.doctor.findings import Finding
from trd_ray.doctor.this_machine import Wanted, examine

if TYPE_CHECKING:
    from trd_ray.config import Recipe

OBJECT_STORE_GIB = 0.5  # what a local cluster's has at least


def run(recipe: "Recipe | None", address: str | None, *, name: str = "", json: bool = False) -> int:
    """Look, print, and return the exit code; `name` is that of a recipe without overrides.

    Raises UserError where no cluster answers at the address.
    """
    address = address or (recipe and recipe.cluster.address) or os.environ.get("RAY_ADDRESS") or "local"
    wanted = wanted_by(recipe, on_cluster=address != "local")
    if address == "local":
        wanted = replace(wanted, gpus=gpus_of(name))
        of_nodes = {"": [Finding(**fields) for fields in examine(wanted)]}
    else:
        of_nodes = _of_cluster(address, wanted)
    found = findings.merged(of_nodes)
    where = "this machine" if address == "local" else f"the cluster at {address}"
    if json:
        print(findings.as_json(found, where=where, nodes=sorted(filter(None, of_nodes))))
    else:
        print(f"{where}{f', for {recipe.name}' if recipe else ''}:\n\n{findings.text(found)}")
    return findings.exit_code(found)


def gpus_of(name: str) -> str:
    """The GPUs that a shipped recipe says it is for, "" for one that needs none or that did not ship."""
    if not name:
        return ""
    from trd_ray import shipped

    machine = next((s.machine for s in shipped.recipes() if s.name == name), "")
    return machine if re.match(r"\d+ GPU", machine) else ""


def _of_cluster(address: str, wanted: Wanted) -> dict[str, list[Finding]]:
    # These are imported here, since a single machine can be looked at where they are not installed.
    from trd_ray import config
    from trd_ray.doctor.every_node import examined
    from trd_ray.session.cluster import cluster

    with contextlib.redirect_stdout(sys.stderr), cluster(config.from_tree({"cluster": {"address": address}})):
        return examined(wanted)


def wanted_by(r: "Recipe | None", *, on_cluster: bool) -> Wanted:
    """What a recipe asks of a machine; without one nothing but to be able to run any."""
    of_any = Wanted(
        locks=against_lock.locks(),
        python=(sys.version_info[0], sys.version_info[1]),
        folders=() if on_cluster else (str(Path("runs").absolute()),),
        object_store_gib=None if on_cluster else OBJECT_STORE_GIB,
        a_node=on_cluster,
        made_here=(*made_here.MODELS, *made_here.PROBLEMS),
    )
    if r is None:
        return of_any
    from trd_ray.config import group_of_teacher

    models = [("student", r.student.path, r.student.revision or "")]
    for name, one in r.by_teacher.items():
        if one.teacher.path:
            models.append((group_of_teacher(name), one.teacher.path, one.teacher.revision or ""))
    if r.judge.path:
        models.append(("judge", r.judge.path, r.judge.revision or ""))
    evaluated = [("evaluation.path", place) for place in _places(str(r.evaluation.path or ""))]
    return replace(
        of_any,
        models=tuple(models),
        problems=(*(("data.sources" if r.data.sources else "data.path", path) for path in r.data.paths), *evaluated),
        folders=(str(r.directory),) if r.run_dir or not on_cluster else (),
        sandbox=r.verify.sandbox,
        runs_code=r.task == "code" and r.verify.may_run_code,
        compiles=bool(r.learner.compile),
        object_store_gib=None if on_cluster else r.cluster.object_store_gib or OBJECT_STORE_GIB,
    )


def _places(path: str) -> list[str]:
    """The data set or file that is read for `evaluation.path`; none for what the package evalplus fetches itself."""
    from trd_ray.problems.benchmarks.catalogue import BY_NAME

    name, _, place = path.partition(":")
    entry = BY_NAME.get(name.partition("@")[0])
    if entry is None:
        return [path] if path else []
    if place:
        return [place]
    return [] if name in ("humaneval_plus", "mbpp_plus") else [entry.repository]
