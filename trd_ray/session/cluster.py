"""Ray for a run: a submitted job's cluster, the one at `cluster.address`, or a local one that ends with the run.

A program has one Connection. It connects to a cluster as soon as it is asked for something there. A local cluster is
started last, when everything else is checked. `close` disconnects, and ends the processes of a local cluster. The end
of the `with` block closes too.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import ray

from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.preflight.compilers import no_compiler
from trd_ray.preflight.machines import Machine, seen_here, this_machine, with_gpus
from trd_ray.preflight.memory import GIB
from trd_ray.session.on_nodes import NodeOfRay, all_answers, nodes_with, require_compilers

LEAST_STORE_GIB = 0.5  # where nothing was planned
STARTS = 3  # attempts at a local cluster, for a machine that is busy
ANSWER_TIMEOUT_S = 15.0  # for the head of a cluster to take a connection
SANDBOX_TIMEOUT_S = 120.0  # for a node to start a worker and a sandbox in it
LOOK_TIMEOUT_S = 120.0  # for a node to start a worker, which looks what the node has
NEW_NODE_TIMEOUT_S = 30.0  # the same, of a node that has come while a run waits; it is asked again


def is_local(recipe: Recipe) -> bool:
    return _address(recipe) == "local"


def _address(recipe: Recipe) -> str:
    # A submitted job finds its cluster in RAY_ADDRESS; a laptop must not join another project's cluster by accident.
    return recipe.cluster.address or os.environ.get("RAY_ADDRESS") or "local"


class Connection:
    """A program's only connection to Ray."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.local = is_local(recipe)
        self.connected = False
        self.object_store_gib = 0.0  # what the plans of a local cluster say; 0: there is none yet
        self._stack = ExitStack()
        self._with_sandboxes: set[str] = set()  # backends that every node can start
        self._compilers_found = False
        self._here: Machine | None = None  # as it was before a local cluster took some of its memory

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def machines(self) -> list[Machine]:
        """The nodes that a run can have, as they are; a local cluster is not started to find that out."""
        if self.local:
            if self._here is None:
                self._here = this_machine(self.recipe)
            [node, *_] = ray.nodes() if self.connected else [{"NodeID": ""}]
            return [replace(self._here, node_id=node["NodeID"])]
        self.connect()
        return machines()

    def connect(self) -> None:
        """Connect unless that is done already; raises UserError."""
        if not self.connected:
            self._stack.enter_context(cluster(self.recipe, self.object_store_gib, self._gpus_here()))
            self.connected = True

    def _gpus_here(self) -> int | None:
        """How many GPUs a local cluster offers: those that this machine's own packages can use."""
        return self.machines()[0].gpus if self.local else None

    def require_sandboxes(self, backend: str) -> None:
        """Raise UserError if a node of a cluster starts no sandbox; each node is asked once."""
        if not self.local and backend not in self._with_sandboxes:
            self.connect()
            require_sandboxes(backend)
            self._with_sandboxes.add(backend)

    def require_compilers(self) -> None:
        """Raise UserError if a node with GPUs lacks what kernels are compiled with; each node is asked once."""
        if self.local:
            if why := no_compiler():
                raise UserError(f"this machine {why}")
        elif not self._compilers_found:
            self.connect()
            require_compilers()
            self._compilers_found = True

    def close(self) -> None:
        self.connected = False
        self._stack.close()


@contextmanager
def cluster(recipe: Recipe, object_store_gib: float = 0.0, gpus: int | None = None) -> Iterator[None]:
    """Connect, and disconnect when the block is left, which ends the processes of a local cluster.

    `object_store_gib` is what a plan gives the object store of a local one. `gpus` is how many it offers, by default as
    many as Ray finds.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    address = _address(recipe)
    local = address == "local"
    options = {}
    if local:
        # If there are more workers than CPUs, actors included, Ray ends a worker that is idle for a second. The
        # verifier tasks of every step would then start new processes.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # A busy machine needs more time to start Ray than the default gives.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
        options = {
            "num_cpus": recipe.cluster.local_cpus,
            "num_gpus": gpus,
            "object_store_memory": int(
                (object_store_gib or recipe.cluster.object_store_gib or LEAST_STORE_GIB) * 2**30
            ),
            "include_dashboard": recipe.cluster.dashboard,
            "dashboard_port": (port := _free_port()),
        }
        # Ray Train asks a dashboard whether the controller of a run lives, and ends the learner if the dashboard knows
        # none. Unless Ray Train is told which dashboard to ask, it asks any that it finds on the machine.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    else:
        _require_answer(address)
    try:
        connected = _init(address, options)
        if local and recipe.cluster.dashboard:
            where = f"http://{connected.dashboard_url}"
            print(f"Ray's dashboard is at {where} and wants what `ray get-auth-token` prints", flush=True)
    except Exception as e:  # Ray raises plain exceptions here too
        why = " ".join(str(e).split())[:300]
        if local:
            logs = f"{os.environ.get('RAY_TMPDIR', tempfile.gettempdir())}/ray/session_*_{os.getpid()}/logs"
            raise UserError(f"Ray could not be started here ({why}): see {logs}") from e
        raise UserError(
            f"no Ray cluster answers at {address} ({why}): start it, or correct cluster.address or RAY_ADDRESS"
        ) from e
    try:
        yield
    finally:
        ray.shutdown()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _init(address: str, options: dict[str, Any]) -> Any:
    # A closed terminal must reach only the run, which then ends Ray's processes. They inherit the blocked signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        return _start(address, options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(address: str, options: dict[str, Any]) -> Any:
    """Call ray.init, and again if a local cluster was not up within the 30 s that Ray gives it."""
    for attempt in range(STARTS):
        try:
            return ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as e:
            if address != "local" or "timed out during startup" not in str(e) or attempt + 1 == STARTS:
                raise
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise UserError for an address where nothing listens; Ray would print each of its attempts."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not (host and port.isdigit()):  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except (OSError, OverflowError) as e:
        raise UserError(
            f"no Ray cluster answers at {address} ({e}): start it, or correct cluster.address or RAY_ADDRESS"
        ) from e


def machines() -> list[Machine]:
    """The nodes that have CPUs or GPUs, each asked for what it has; raises UserError if one does not answer."""
    return _looked_at(nodes_with("CPU", "GPU"))


def machines_but(leaving: Collection[str], known: Sequence[Machine]) -> list[Machine]:
    """The nodes that live, without those that are `leaving`. Only those that are not `known` are asked what they have.

    One that has come and does not answer is left out.
    """
    by_id = {machine.node_id: machine for machine in known}
    found = []
    for node in nodes_with("CPU", "GPU"):
        if node.node_id in by_id and node.node_id not in leaving:
            found.append(by_id[node.node_id])
        elif node.node_id not in leaving:
            with contextlib.suppress(UserError):
                found += _looked_at([node], NEW_NODE_TIMEOUT_S)
    return found


def _looked_at(nodes: list[NodeOfRay], timeout_s: float = LOOK_TIMEOUT_S) -> list[Machine]:
    has = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    what = "tell what GPUs it has"
    seen = all_answers(seen_here, nodes=nodes, timeout_s=timeout_s, what=what)
    return [
        with_gpus(
            Machine(
                name=node.host,
                cpus=has[node.node_id].get("CPU", 0.0),
                memory_gib=has[node.node_id].get("memory", 0.0) / GIB,
                node_id=node.node_id,
            ),
            int(has[node.node_id].get("GPU", 0)),
            found,
        )
        for node, found in seen
    ]


def require_sandboxes(backend: str) -> None:
    """Start a sandbox on every node that runs tasks; raises UserError with the name of a node where none starts."""
    nodes, what = nodes_with("CPU"), "start a sandbox"
    for node, why in all_answers(_no_sandbox, backend, nodes=nodes, timeout_s=SANDBOX_TIMEOUT_S, what=what):
        if why:
            raise UserError(f"node {node.host}: {why}")


def _no_sandbox(backend: str) -> str:
    """Why no sandbox starts here, "" if one does."""
    from trd_ray.sandbox import Sandbox

    try:
        Sandbox(backend)
    except UserError as e:
        return str(e)
    return ""
