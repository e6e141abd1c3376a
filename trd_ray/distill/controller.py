"""How Ray Train's controller and its ranks tell that they live, and how a group is ended that does not end by itself.

    Beats(mailbox) --in the controller's process and in every rank's--> Mailbox      it lives, and this is its actor
    ranks_up(controller) -> how many ranks have a process, and are ready: one that stops before its first beat is missed
    kill(members, end)   -> the ranks, the controller, and the placement groups that the controller made

The controller owns the ranks, so they end with it. Its placement groups do not, until the job ends: their CPUs and GPUs
would be missing for the group that comes next. Ray Train's own cleaner of them needs a dashboard, which a local run
does not have.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import state as gcs  # the public API of actors needs a dashboard
from ray.actor import ActorHandle
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import RayTrainWorker
from ray.util.placement_group import PlacementGroup, remove_placement_group

from trd_ray.distill.mailbox import CONTROLLER, Member

RANK = RayTrainWorker.__name__


def beat(mailbox: ActorHandle, who: Member, every_s: float) -> None:
    """From now on a thread tells the mailbox that the process of this actor lives."""
    me = ray.get_runtime_context().current_actor

    def until_the_end() -> None:
        while True:
            mailbox.beat.remote(who, me)
            time.sleep(every_s)

    threading.Thread(target=until_the_end, name="beat", daemon=True).start()


class Beats(ControllerCallback, WorkerGroupCallback):
    """Makes Ray Train's controller beat, and every rank from when it has a number, which is before it imports torch."""

    def __init__(self, mailbox: ActorHandle, every_s: float):
        self.mailbox, self.every_s = mailbox, every_s

    def after_controller_start(self, train_run_context: Any) -> None:
        beat(self.mailbox, CONTROLLER, self.every_s)

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        for worker in workers:
            worker.execute_async(beat, self.mailbox, worker.distributed_context.world_rank, self.every_s)
        return {}


def ranks_up(controller: ActorHandle) -> tuple[int, int]:
    """How many ranks of this controller have a process, and how many of them are ready to be told something.

    As far as Ray knows. A rank that has a process still imports its class; stopped in there, it is never ready.
    """
    # In this order, or one that becomes ready between the two would be in neither.
    begun = gcs.actor_table(None, None, "PENDING_CREATION")
    ready = gcs.actor_table(None, None, "ALIVE")
    me = ready.get(controller._actor_id.hex())

    def ranks(actors: dict[str, dict]) -> set[str]:
        mine = {actor: one for actor, one in actors.items() if me and one["OwnerAddress"] == me["Address"]}
        return {actor for actor, one in mine.items() if one["ActorClassName"] == RANK and one["Pid"] > 0}

    return len(ranks(begun) | ranks(ready)), len(ranks(ready))


def kill(members: dict[Member, ActorHandle], end: Callable[[ActorHandle], object]) -> None:
    """End these processes of a group by `end`, whatever state they are in, and free what the group has reserved.

    A rank that was never heard of ends with the controller, which owns it.
    """
    for handle in members.values():
        with contextlib.suppress(Exception):  # it may be dead already
            end(handle)
    if controller := members.get(CONTROLLER):
        for group in _placement_groups_of(controller):
            with contextlib.suppress(Exception):
                remove_placement_group(group)


def _placement_groups_of(actor: ActorHandle) -> list[PlacementGroup]:
    """Those that an actor made. Ray's public table of them does not say who made which."""
    table = gcs._connect_and_get_accessor().get_placement_group_table()
    groups = map(gcs_pb2.PlacementGroupTableData.FromString, table)  # pyright: ignore - it is generated
    mine = [group for group in groups if group.creator_actor_id == actor._actor_id.binary()]
    return [PlacementGroup(ray.PlacementGroupID(group.placement_group_id)) for group in mine]
