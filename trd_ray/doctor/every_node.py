"""The same questions to every node of a cluster, and what only a cluster has: its object stores and its clocks.

    Wanted --a task on each node, by value--> this_machine.examine() --> {node's name: [Finding]}

A node that has not answered within NODE_S is named, and the others are still told. Nothing is left running there.
"""

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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    send_by_value()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = _names(nodes)
    questions, clock = (ray.remote(num_cpus=0, max_retries=0)(function) for function in (examine, _now))

    def on(node: str, task: Any, *arguments: Any) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return task.options(scheduling_strategy=strategy).remote(*arguments)

    asked = {on(node, questions, wanted): node for node in nodes}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
    answers = {asked[ref]: _answer(ref) for ref in done}
    for ref in late:
        ray.cancel(ref, force=True)
    clocks = {node: _clock(lambda node=node: on(node, clock)) for node in answers}
    found = {}
    for node, facts in nodes.items():
        store = facts["Resources"].get("object_store_memory", 0) / GIB
        silent = [Finding("node", LACKS, f"no answer within {NODE_S:.0f} s", "look at its Ray logs", True)]
        found[names[node]] = [*answers.get(node, silent), *clocks.get(node, []), _store(store)]
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


def _answer(ref: Any) -> list[Finding]:
    import ray

    try:
        return [Finding(**fields) for fields in ray.get(ref)]
    except Exception as e:  # whatever a node can raise is what is to be told of it
        return [Finding("node", LACKS, " ".join(str(e).split())[-200:], "look at its Ray logs", True)]


def _clock(ask: Any) -> list[Finding]:
    """How far a node's clock is from this one's, at least; its worker has been started by the task before."""
    import ray

    begin = time.time()
    ref = ask()
    if not ray.wait([ref], timeout=CLOCK_S)[0]:
        return [Finding("clock", NOT_KNOWN, f"no answer within {CLOCK_S:.0f} s")]
    try:
        there: Any = ray.get(ref)
    except Exception as e:  # the node has gone since
        return [Finding("clock", NOT_KNOWN, " ".join(str(e).split())[-200:])]
    return [_apart(there - begin, time.time() - there)]


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
