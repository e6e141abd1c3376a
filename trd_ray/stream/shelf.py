"""The shelf brings the tests of one problem into the object store when somebody asks for them.

    stage --tests(number)--> Shelf, on the driver's machine --pread--> spool file
          <-- [ObjectRef] --                                --put----> object store

The tests of a whole data set would not fit into the object store. The shelf keeps no reference, so what it put is freed
when whoever asked drops the one that it got. They travel packed, and are unpacked where programs are verified.

When its process dies, Ray starts it again, and it opens the file again. But the dead process owned what it had put: a
verifier task that is then given one of those references fails, and the stage asks for the tests again. The shelf ends
with its last handle, with `ray.kill`, or with the driver, which owns the file.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trd_ray.problems.spool import Spool


class Shelf:
    """The actor class; `start_shelf` starts it."""

    def __init__(self, path: str, places: np.ndarray):
        self._file = os.open(path, os.O_RDONLY)
        self._places = places

    def tests(self, number: int) -> list[ObjectRef]:
        """A reference to the packed tests of problem `number`, in a list. [] where it has none."""
        start, length = map(int, self._places[number])
        return [ray.put(os.pread(self._file, length, start))] if length else []


def start_shelf(problems: pa.Table, spool: Spool | None) -> ActorHandle | None:
    """The shelf for the tests of these problems, on the driver's node. None where no problem has tests.

    A problem's number is its position in the table. The spool must live as long as the shelf.
    """
    places = spool.places(problems["problem_id"].to_pylist()) if spool else np.zeros((0, 2), np.int64)
    if not spool or not places[:, 1].any():
        return None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    shelf: Any = ray.remote(Shelf)
    return shelf.options(**options).remote(spool.path, places)
