"""The models of a run, on every node that may hold an engine or a learner rank, before any start has a deadline.

    names, what the driver resolved them to  ->  fetch_models()  ->  the same place on every node, or a UserError

- A model of the hub is downloaded, once a node: all engines and ranks there then read the same files.
- A model that is made here (miniature, smollm2) is made on each node, whose cache is its own.
- A folder is not copied: it must be where every node sees it.

One task a node does this. Where Ray has this machine alone, only a download is left to do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trd_ray import made_here, models
from trd_ray.errors import UserError
from trd_ray.session.on_nodes import Late, answers, nodes_with


@dataclass(frozen=True)
class ModelsWanted:
    """A model that engines or ranks load."""

    name: str  # as the recipe says it
    path: str  # what the driver resolved it to, which is what engines and ranks are given
    revision: str | None
    kind: Literal["hub", "made", "folder"]

    @classmethod
    def of(cls, name: str, path: str, revision: str | None) -> "ModelsWanted":
        if name in made_here.MODELS and not Path(name).exists():
            return cls(name, path, revision, "made")
        return cls(name, path, revision, "folder" if Path(path).is_dir() else "hub")


def fetch_models(
    wanted: list[ModelsWanted],
    *,
    local: bool,
    on_gpus: bool,
    timeout_s: float,
    while_waiting: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda text: None,
) -> bool:
    """Wait until every node has the models. Returns whether anything was downloaded, which `say` is told before.

    `local` says that Ray has this machine alone, `on_gpus` that all who load the models are on GPUs. Raises UserError
    with the name of a node that cannot have a model, or that has not got it in time.
    """
    asked = list(dict.fromkeys(one for one in wanted if one.kind == "hub" or not local))
    if not asked:
        return False
    names = " and ".join(dict.fromkeys(one.name for one in asked))
    # What is made here cannot be had later, as what stages read of a hub's model can: stages may run on any node.
    anywhere = any(one.kind == "made" for one in asked)
    nodes = nodes_with() if anywhere else nodes_with("GPU" if on_gpus else "CPU")
    downloads = any(one.kind == "hub" for one in asked)
    if downloads:
        say(f"fetching {names} to {len(nodes)} node{'s' * (len(nodes) > 1)}")
    try:
        for node, faults in answers(_have, asked, nodes=nodes, timeout_s=timeout_s, while_waiting=while_waiting):
            if isinstance(faults, Exception):
                faults = [f"could not fetch {names} ({' '.join(str(faults).split())[:300]})"]
            if faults:
                raise UserError(*(f"node {node.host} {fault}" for fault in faults))
    except Late as late:
        raise UserError(
            f"node {' and '.join(late.hosts)} had not fetched {names} within {timeout_s:.0f} s "
            "(cluster.fetch_timeout_s): raise it, or download the model before and name its folder"
        ) from None
    return downloads


def _have(wanted: list[ModelsWanted]) -> list[str]:
    """Have the models on this node. Returns what stands in the way, each as the end of a sentence."""
    faults = []
    for one in wanted:
        try:
            fault = _HAVE[one.kind](one)
        except (UserError, OSError) as e:
            fault = f"cannot have the model {one.name}: {e}"
        if fault:
            faults.append(fault)
    return faults


def _downloaded(one: ModelsWanted) -> str:
    models.download(one.path, one.revision)
    return ""


def _made(one: ModelsWanted) -> str:
    place = models.resolve(one.name)
    if place == one.path:
        return ""
    return (
        f"keeps the model {one.name} in {place}, but the driver has it in {one.path}: set XDG_CACHE_HOME to the same "
        "folder on every node, and install the package in the same place"
    )


def _seen(one: ModelsWanted) -> str:
    if Path(one.path).is_dir():
        return ""
    return f"does not see the model folder {one.path}: put it on storage that every node sees, or use a name of the hub"


_HAVE: dict[str, Callable[[Any], str]] = {"hub": _downloaded, "made": _made, "folder": _seen}
