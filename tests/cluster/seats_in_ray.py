"""What Ray makes of plans, on a cluster of two nodes that pretend to have eight GPUs each: prints it as JSON.

A program of its own: `ray.cluster_utils.Cluster` starts a Ray that no other test may share.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from trd_ray.config import from_tree
from trd_ray.engine.reservation import reserve
from trd_ray.errors import UserError
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import LEARNER, Need, seated
from trd_ray.session.fresh_seats import machines_now, seats_again
from trd_ray.session.notices import leaving

GPUS = 8
NODE: dict[str, Any] = {"num_cpus": 16, "num_gpus": GPUS, "object_store_memory": 80 * 2**20}
# name -> actor -> (how many, GPUs of each)
PLANS: dict[str, dict[str, tuple[int, float]]] = {
    "two nodes": {"sampler": (4, 2), "refiner": (2, 1)},
    "shared": {"sampler": (2, 0.3), "refiner": (2, 0.3), "learner": (2, 0.4)},
    "wide": {"sampler": (1, 6), "refiner": (1, 6), "learner": (4, 1)},
    "in turn": {"sampler": (2, 0.3333), "refiner": (2, 0.3333), "learner": (2, 0.3333)},  # the learner starts first
}


class Probe:
    def seen(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), sorted(map(int, ray.get_gpu_ids()))


def plan_of(machines: Sequence[Machine], actors: dict[str, tuple[int, float]]) -> Placement:
    plans = [ActorPlan(ActorSpec(name, n, 0.1, gpus), {}, 0.0) for name, (n, gpus) in actors.items()]
    beside = actors is PLANS["in turn"]
    needs = [
        Need(name, i, 0.1, gpus, beside_rank=beside and name != LEARNER)
        for name, (n, gpus) in actors.items()
        for i in range(n)
    ]
    seats = seated(needs, machines)
    assert isinstance(seats, list), seats
    return Placement(plans, {}, {}, 80, "gloo", 0.5, machines=tuple(machines), seats=tuple(seats))


def launched(plan: Placement, learner_first: bool = False) -> list[dict]:
    """Each actor with the seat that it was planned, and what it found when it ran."""
    reservation = reserve(plan, 60)
    probes: list[Any] = []
    asked = []
    try:
        ranks = _ranks_beside(plan, reservation) if learner_first else []
        for pool in [name for name in plan.specs if name != LEARNER]:
            spec = plan.specs[pool]
            for seat, place in zip(plan.seats_of(pool), reservation.places(pool), strict=True):
                options = {"num_cpus": spec.cpus, "num_gpus": spec.gpus, "scheduling_strategy": place.strategy}
                probes.append(ray.remote(Probe).options(**options).remote())
                asked.append((seat, place, probes[-1].seen.remote()))
        found = [(seat, place.turn, *ray.get(ref, timeout=60)) for seat, place, ref in asked]
        found += ranks or _ranks_beside(plan, reservation)
    finally:
        for probe in probes:
            ray.kill(probe)
        reservation.release()
    names = {machine.node_id: machine.name for machine in plan.machines}
    return [
        {
            "actor": seat.actor, "planned": [plan.machines[seat.machine].name, list(seat.gpus)],
            "got": [names[node], gpus], "turn": turn,
        }
        for seat, turn, node, gpus in found
    ]  # fmt: skip


def _ranks_beside(plan: Placement, reservation: Any) -> list[Any]:
    """The ranks, let in beside what is held for engines, with their seats."""
    reservation.admit_learner()
    if LEARNER not in plan.specs:
        return []
    return [(seat, 0, *ids) for seat, ids in zip(plan.seats_of(LEARNER), _ranks(plan, reservation), strict=True)]


def _ranks(plan: Placement, reservation: Any) -> list[tuple[str, list[int]]]:
    """What each rank of a Ray Train group finds, which is started as the learner's is."""
    import ray.train
    from ray.train import RunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from trd_ray.distill.trainer import scaling

    def work(config: dict) -> None:
        rank = ray.train.get_context().get_world_rank()
        with open(f"{config['out']}/{rank}", "w") as file:
            json.dump([ray.get_runtime_context().get_node_id(), sorted(map(int, ray.get_gpu_ids()))], file)

    spec = plan.specs[LEARNER]
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as storage:
        config = scaling(spec.replicas, spec.cpus, spec.gpus, reservation.ranks())
        run = RunConfig(name="ranks", storage_path=storage)
        DataParallelTrainer(work, train_loop_config={"out": out}, scaling_config=config, run_config=run).fit()
        return [tuple(json.load(open(f"{out}/{rank}"))) for rank in range(spec.replicas)]  # type: ignore[misc]


def main() -> dict:
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: n["NodeID"] != cluster.head_node.node_id)
        machines = [Machine("ab"[i], 16, gpus=GPUS, node_id=node["NodeID"]) for i, node in enumerate(nodes)]
        found: dict[str, Any] = {
            name: launched(plan_of(machines, actors), learner_first=name == "in turn") for name, actors in PLANS.items()
        }
        found["asked"] = asked()
        found["held"] = held_by_others(machines)
        found["again"] = a_node_goes(cluster, machines)
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def a_node_goes(cluster: Cluster, machines: Sequence[Machine]) -> dict:
    """Notice is given to the second of two nodes with an engine each, and the engine there starts on a third one."""
    plan = plan_of(machines, {"sampler": (2, 5)})
    before = reserve(plan, 60)
    spec = plan.specs["sampler"]
    options: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
    probes = [
        ray.remote(Probe).options(**options, scheduling_strategy=p.strategy).remote() for p in before.places("sampler")
    ]
    at = [ray.get(probe.seen.remote(), timeout=60)[0] for probe in probes]
    goes = next(node for node in cluster.list_all_nodes() if node.node_id == machines[1].node_id)
    lost = at.index(goes.node_id)
    message = "a spot machine"
    ray._private.worker.global_worker.gcs_client.drain_node(
        goes.node_id, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, message, int(time.time() * 1000) + 600_000
    )
    told = leaving()
    recipe = from_tree({"cluster": {"address": cluster.address}})
    while_it_leaves = [machine.name for machine in machines_now(machines, recipe)]
    comes = cluster.add_node(**NODE)
    fresh = Machine("c", 16, gpus=GPUS, node_id=comes.node_id)
    said: list[str] = []
    nodes = iter([[machines[0]]])  # it is there at the second look
    after = seats_again(
        [("sampler", lost)], before, recipe, wait_s=120, machines=lambda _: next(nodes, [machines[0], fresh]),
        while_waiting=lambda: None, say=said.append,
    )  # fmt: skip
    place = after.places_by_number("sampler")[lost]
    again: Any = ray.remote(Probe).options(**options, scheduling_strategy=place.strategy).remote()
    cluster.remove_node(goes)
    found = {
        "told": {"of it": list(told) == [goes.node_id], "left_s": told[goes.node_id]},
        "while it leaves": while_it_leaves,
        "said": said,
        "again on the new node": ray.get(again.seen.remote(), timeout=60)[0] == comes.node_id,
        "the other stays": ray.get(probes[1 - lost].seen.remote(), timeout=60)[0] == at[1 - lost],
    }
    for probe in (again, probes[1 - lost]):
        ray.kill(probe)
    after.release()
    return found


def asked() -> list[dict]:
    """What the nodes tell of themselves: they offer GPUs that this machine does not have."""
    from trd_ray.session.cluster import machines

    return [{"gpus": m.gpus, "cpus": m.cpus, "lacks": m.lacks, "vllm": m.vllm} for m in machines()]


def held_by_others(machines: Sequence[Machine]) -> dict:
    """Another job has seven GPUs of the first node, where two engines are planned."""
    selector = {"ray.io/node-id": machines[0].node_id}
    others: Any = ray.remote(Probe).options(num_cpus=0, num_gpus=7, label_selector=selector).remote()
    ray.get(others.seen.remote())
    before = time.monotonic()
    try:
        reserve(plan_of(machines[:1], {"sampler": (2, 1)}), 2)
        told = ""
    except UserError as e:
        told = str(e)
    took = time.monotonic() - before
    free = launched(plan_of(machines[:1], {"sampler": (1, 1)}))  # what was reserved before the refusal is free again
    ray.kill(others)
    return {"told": told, "seconds": took, "then": free}


if __name__ == "__main__":
    result = main()
    with open(sys.argv[1], "w") as file:
        json.dump(result, file)
