"""Questions to every node of a cluster, each answered by a task there, with one deadline for all.

call, arguments, nodes  ->  answers()      ->  (node, what the call returned or raised there), as they come
                        ->  all_answers()  ->  (node, what it returned there), once all have answered
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trd_ray.errors import UserError
from trd_ray.preflight.compilers import no_compiler

LOOK_EVERY_S = 0.5
COMPILER_TIMEOUT_S = 120.0  # for a node to start a worker and look


@dataclass(frozen=True)
class NodeOfRay:
    node_id: str
    host: str


class Late(Exception):
    """Nodes did not answer in time."""

    def __init__(self, hosts: list[str]):
        super().__init__(", ".join(hosts))
        self.hosts = hosts


def nodes_with(*resources: str) -> list[NodeOfRay]:
    """The nodes that live and have some of one of these resources of Ray, such as "GPU"; of none, all that live."""
    return [
        NodeOfRay(node["NodeID"], node["NodeManagerHostname"])
        for node in ray.nodes()
        if node["Alive"] and (not resources or any(map(node["Resources"].get, resources)))
    ]


def answers(
    call: Callable[..., Any],
    *arguments: Any,
    nodes: list[NodeOfRay],
    timeout_s: float,
    while_waiting: Callable[[], object] = lambda: None,
) -> Iterator[tuple[NodeOfRay, Any]]:
    """What `call` returns on each node, in the order in which they answer; a RayError where it could not.

    The tasks reserve nothing. Raises Late with the hosts that have not answered in time. `while_waiting` is called
    about twice a second and may raise to give up.

    A task that is no longer waited for ends by itself or with this process. It is not cancelled: where `ray.cancel`
    meets a task that begins or ends at that moment, Ray aborts this process (`Check failed: it !=
    submissible_tasks_.end()`, seen with Ray 2.60).
    """
    # A task is tried again if its worker dies, as for want of memory.
    there = ray.remote(num_cpus=0, max_retries=2)(call)
    asked = {
        there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
            *arguments
        ): node
        for node in nodes
    }
    deadline = time.monotonic() + timeout_s
    while asked:
        done, _ = ray.wait(list(asked), num_returns=1, timeout=LOOK_EVERY_S)
        for ref in done:
            node = asked.pop(ref)
            try:
                answer = ray.get(ref)
            except RayError as e:
                answer = e
            yield node, answer
        if asked and time.monotonic() > deadline:
            raise Late([node.host for node in asked.values()])
        while_waiting()


def all_answers(
    call: Callable[..., Any], *arguments: Any, nodes: list[NodeOfRay], timeout_s: float, what: str
) -> list[tuple[NodeOfRay, Any]]:
    """What `call` returns on each node, in their order. Raises UserError with the name of one that did not `what`."""
    found: dict[NodeOfRay, Any] = {}
    try:
        for node, answer in answers(call, *arguments, nodes=nodes, timeout_s=timeout_s):
            if isinstance(answer, RayError):
                raise UserError(f"node {node.host} did not {what}: {' '.join(str(answer).split())[:300]}")
            found[node] = answer
    except Late as late:
        raise UserError(f"node {late.hosts[0]} did not {what} within {timeout_s:.0f} s: look at its Ray logs") from None
    return [(node, found[node]) for node in nodes]


def require_compilers() -> None:
    """Raise UserError with the name of a node with GPUs that has nothing to compile kernels with."""
    what = "look for a compiler"
    for node, missing in all_answers(no_compiler, nodes=nodes_with("GPU"), timeout_s=COMPILER_TIMEOUT_S, what=what):
        if missing:
            raise UserError(f"node {node.host} {missing}")
