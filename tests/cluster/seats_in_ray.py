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

from trd_ray.engine.reservation import reserve
from trd_ray.errors import UserError
from trd_ray.preflight.actors import ActorPlan, ActorSpec
from trd_ray.preflight.machines import Machine
from trd_ray.preflight.placement import Placement
from trd_ray.preflight.seats import LEARNER, Need, seated

GPUS = 8
NODE: dict[str, Any] = {"num_cpus": 16, "num_gpus": GPUS, "object_store_memory": 80 * 2**20}
# name -> actor -> (how many, GPUs of each)
PLANS: dict[str, dict[str, tuple[int, float]]] = {
    "two nodes": {"sampler": (4, 2), "refiner": (2, 1)},
    "shared": {"sampler": (2, 0.3), "refiner": (2, 0.3), "learner": (2, 0.4)},
    "wide": {"sampler": (1, 6), "refiner": (1, 6), "learner": (4, 1)},
}


class Probe:
    def seen(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), sorted(map(int, ray.get_gpu_ids()))


def plan_of(machines: Sequence[Machine], actors: dict[str, tuple[int, float]]) -> Placement:
    plans = [ActorPlan(ActorSpec(name, n, 0.1, gpus), {}, 0.0) for name, (n, gpus) in actors.items()]
    seats = seated([Need(name, i, 0.1, gpus) for name, (n, gpus) in actors.items() for i in range(n)], machines)
    assert isinstance(seats, list), seats
    return Placement(plans, {}, {}, 80, "gloo", 0.5, machines=tuple(machines), seats=tuple(seats))


def launched(plan: Placement) -> list[dict]:
    """Each actor with the seat that it was planned, and what it found when it ran."""
    reservation = reserve(plan, 60)
    probes: list[Any] = []
    asked = []
    try:
        for pool in [name for name in plan.specs if name != LEARNER]:
            spec = plan.specs[pool]
            for seat, place in zip(plan.seats_of(pool), reservation.places(pool), strict=True):
                options = {"num_cpus": spec.cpus, "num_gpus": spec.gpus, "scheduling_strategy": place.strategy}
                probes.append(ray.remote(Probe).options(**options).remote())
                asked.append((seat, place, probes[-1].seen.remote()))
        found = [(seat, place.turn, *ray.get(ref, timeout=60)) for seat, place, ref in asked]
        reservation.admit_learner()
        if LEARNER in plan.specs:
            ranks = _ranks(plan, reservation)
            found += [(seat, 0, *ids) for seat, ids in zip(plan.seats_of(LEARNER), ranks, strict=True)]
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
        nodes = [node for node in ray.nodes() if node["Alive"]]
        machines = [Machine("ab"[i], 16, gpus=GPUS, node_id=node["NodeID"]) for i, node in enumerate(nodes)]
        found: dict[str, Any] = {name: launched(plan_of(machines, actors)) for name, actors in PLANS.items()}
        found["asked"] = asked()
        found["held"] = held_by_others(machines)
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


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
