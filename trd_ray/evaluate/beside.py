"""A checkpoint of a run that goes on is evaluated beside it: in its Ray, on one engine, where there is room.

    Target of a run that lives  ->  beside()  ->  its name, and the recipe with the address of its Ray and one engine

A Ray of its own would count the same CPUs and GPUs a second time. In the run's Ray the engine gets only what nobody
holds, and waits for that (see `trd_ray.session.room_beside`). If the run ends first, its local Ray ends too; the
samples that were finished are kept, and the same command goes on by itself.
"""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

from trd_ray.config import Recipe
from trd_ray.evaluate.target import run_of
from trd_ray.record.claim import reading
from trd_ray.session.seen import look_at

LIVE = ("running", "paused", "silent")


def beside(recipe: Recipe, overrides: list[str]) -> tuple[str, Recipe]:
    """(the name of the run that lives, "" for none; the recipe to evaluate its checkpoint with)."""
    run = run_of(Path(recipe.student.path))
    if run is None:
        return "", recipe
    view = look_at(run)
    ray = view["status"].get("ray") or {}
    if view["state"] not in LIVE or not ray.get("address"):
        return "", recipe
    if ray.get("local") and view["status"].get("host") != socket.gethostname():
        return "", recipe
    if recipe.cluster.address is None and not os.environ.get("RAY_ADDRESS"):
        cluster = recipe.cluster.model_copy(update={"address": ray["address"]})
        recipe = recipe.model_copy(update={"cluster": cluster})
    if not any(override.startswith("sampler.replicas=") for override in overrides):
        recipe = recipe.with_replicas("sampler", 1)
    if recipe.verify.names_judge and not any(override.startswith("judge.replicas=") for override in overrides):
        recipe = recipe.with_replicas("judge", 1)
    return view["name"], recipe


def is_whole(run: Path) -> bool:
    """Whether the run that lives has all its engines and ranks. One that lacks some is about to take room again."""
    view = look_at(run)
    if view["state"] not in LIVE:
        return True
    status = view["status"]
    pools = [pool for pool in (status.get("pools") or {}).values() if isinstance(pool, dict) and "engines" in pool]
    starts = (status.get("shown") or {}).get("starting") or (status.get("learner") or {}).get("restarting")
    return not starts and all(pool["up"] >= pool["engines"] for pool in pools)


def hold(model: str, stack: ExitStack) -> bool:
    """Keep the run from deleting the checkpoint of this model until the stack is closed; False if it has done so."""
    checkpoint = Path(model).parent
    if Path(model).name != "model" or checkpoint.parent.name != "checkpoints":
        return True
    try:
        stack.enter_context(reading(checkpoint))
    except OSError:
        return False
    return checkpoint.exists()  # not renamed to be deleted, in the moment before
