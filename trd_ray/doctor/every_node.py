"""The same questions to every node of a cluster, and what only a cluster has: its object stores and its clocks.

    Wanted --a task on each node, by value--> this_machine.examine() --> {node's name: [Finding]}

A node that has not answered within NODE_S is named, and the others are still told. Nothing is left running there.
"""

import contextlib
import time
from typing import Any

from trd_ray.doctor.findings import LACKS, NOT_KNOWN, PASS, Finding
from trd_ray.doctor.this_machine import GIB, Wanted, examine

NODE_S = 45.0  # for all nodes together: to start a worker each, and to answer
CLOCK_S = 5.0
MOST_APART_S = 1.0


def examined(wanted: Wanted) -> dict[str, list[Finding]]:
    """Ask all nodes of the cluster to which Ray is connected."""
    import ray

    from trd_ray.session.on_nodes import Late, NodeOfRay, answers

    send_by_value()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = _names(nodes)
    asked = [NodeOfRay(node, facts["NodeManagerHostname"]) for node, facts in nodes.items()]
    answered: dict[NodeOfRay, list[Finding]] = {}
    with contextlib.suppress(Late):
        for node, answer in answers(examine, wanted, nodes=asked, timeout_s=NODE_S):
            answered[node] = _findings(answer)
    clocks = {node: _clock(node) for node in answered}
    found = {}
    for node in asked:
        store = nodes[node.node_id]["Resources"].get("object_store_memory", 0) / GIB
        silent = [Finding("node", LACKS, f"no answer within {NODE_S:.0f} s", "look at its Ray logs", True)]
        found[names[node.node_id]] = [*answered.get(node, silent), *clocks.get(node, []), _store(store)]
    return found


def send_by_value() -> None:
    """A node may have another trd_ray, or none: from now on it gets the code of the questions instead of its name."""
    from ray import cloudpickle  # type: ignore[reportAttributeAccessIssue]

    import trd_ray.doctor
    from trd_ray.preflight import compilers

    for module in (trd_ray.doctor, compilers):
        cloudpickle.register_pickle_by_value(module)


def _names(nodes: dict[str, dict]) -> dict[str, str]:
    hosts = {node: facts["NodeManagerHostname"] for node, facts in nodes.items()}
    twice = {host for host in hosts.values() if list(hosts.values()).count(host) > 1}
    return {node: f"{host} ({node[:6]})" if host in twice else host for node, host in hosts.items()}


def _findings(answer: Any) -> list[Finding]:
    if isinstance(answer, Exception):
        return [Finding("node", LACKS, _end_of(answer), "look at its Ray logs", True)]
    return [Finding(**fields) for fields in answer]


def _clock(node: Any) -> list[Finding]:
    """How far a node's clock is from this one's, at least; its worker has been started by the task before."""
    from trd_ray.session.on_nodes import Late, answers

    begin = time.time()
    try:
        [(_, there)] = answers(_now, nodes=[node], timeout_s=CLOCK_S)
    except Late:
        return [Finding("clock", NOT_KNOWN, f"no answer within {CLOCK_S:.0f} s")]
    if isinstance(there, Exception):  # the node has gone since
        return [Finding("clock", NOT_KNOWN, _end_of(there))]
    return [_apart(there - begin, time.time() - there)]


def _end_of(error: Exception) -> str:
    return " ".join(str(error).split())[-200:]


def _now() -> float:
    return time.time()


def _apart(after_asking_s: float, before_answer_s: float) -> Finding:
    """Both are positive where the clocks agree: the node looks at its clock after it was asked, and then answers."""
    ahead = -before_answer_s if before_answer_s < 0 else after_asking_s if after_asking_s < 0 else 0.0
    if abs(ahead) > MOST_APART_S:
        remedy = "let it follow a time server (chrony, systemd-timesyncd)"
        return Finding("clock", LACKS, f"at least {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}", remedy)
    return Finding("clock", PASS, f"within {MOST_APART_S:.0f} s of this machine's")


def _store(gib: float) -> Finding:
    if gib < 0.25:
        remedy = "start the node with `ray start --object-store-memory` of 1 GiB or more"
        return Finding("object store", LACKS, f"{gib:.2f} GiB", remedy, True)
    return Finding("object store", PASS, f"{gib:.1f} GiB")
