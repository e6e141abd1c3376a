"""Machines are asked or described, never guessed."""

import math
import types

import pytest

from trd_ray.errors import UserError
from trd_ray.preflight import machines
from trd_ray.preflight.machines import Machine, Seen, described, visible_gpus, with_gpus

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "gib", "kind"),
    [
        ("8x80GiB", 1, 8, 80, ""),
        ("1x24gib", 1, 1, 24, ""),
        ("1x23.5GiB", 1, 1, 23.5, ""),
        ("8xH100", 1, 8, 80, "H100"),
        ("2x8xH100", 2, 8, 80, "H100"),
        ("4x2x141GiB", 4, 2, 141, ""),
        ("1xrtx4090", 1, 1, 24, "RTX4090"),
        (" 2xL40S ", 1, 2, 45, "L40S"),
    ],
)
def test_on_describes_nodes_of_gpus_by_their_memory_or_kind(text, nodes, gpus, gib, kind):
    found = described(text)
    assert len(found) == nodes and len({machine.name for machine in found}) == nodes
    assert {(m.gpus, m.gpu_gib, m.gpu_kind, m.cpus, m.memory_gib) for m in found} == {(gpus, gib, kind, math.inf, None)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "describe a cluster as [NODESx]GPUSx(GiB | KIND), such as 8x80GiB or 2x8xH100"),
        ("H100", "describe a cluster as"),
        ("8", "describe a cluster as"),
        ("8x80", "describe a cluster as"),
        ("8x80GB", "describe a cluster as"),
        ("-8xH100", "describe a cluster as"),
        ("2x8x8xH100", "describe a cluster as"),
        ("0xH100", "0 GPUs: name 1 to"),
        ("0x8xH100", "0 nodes of 8 GPUs"),
        ("9999x8xH100", "name 1 to 256 nodes"),
        ("8x0GiB", "GPUs of 0 GiB"),
        ("8xA100", "A100s come in two sizes: say 8x40GiB or 8x80GiB"),
        ("2x8xa100", "say 2x8x40GiB or 2x8x80GiB"),
        ("8xH1000", "did you mean H100?"),
        ("8xQ9", "say its GiB, as in 8x80GiB, or one of T4"),
    ],
)
def test_a_cluster_that_is_not_described_is_refused_with_the_form(text, told):
    with pytest.raises(UserError) as refused:
        described(text)
    assert told in str(refused.value) and str(refused.value).startswith(f"--on {text}")


class NvmlError(Exception):
    pass


def nvml(*gpus: tuple[str, str, float], driver: bool = True) -> types.SimpleNamespace:
    """What pynvml answers on a machine with these GPUs, each (uuid, name, GiB)."""

    def init() -> None:
        if not driver:
            raise NvmlError("Driver Not Loaded")

    def by_uuid(uuid: str) -> int:
        found = [i for i, gpu in enumerate(gpus) if gpu[0].startswith(uuid)]
        if not found:
            raise NvmlError(f"no device {uuid}")
        return found[0]

    return types.SimpleNamespace(
        NVMLError=NvmlError, nvmlInit=init, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda i: gpus.index(gpus[i]), nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetName=lambda h: gpus[h][1],
        nvmlDeviceGetMemoryInfo=lambda h: types.SimpleNamespace(total=round(gpus[h][2] * GIB)),
    )  # fmt: skip


TWO = (("GPU-aa", "NVIDIA H100 80GB HBM3", 79.6), ("GPU-bb", "NVIDIA A100-SXM4-40GB", 40.0))


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["H100 80GB HBM3", "A100-SXM4-40GB"]),
        ("1", ["A100-SXM4-40GB"]),
        ("1,0", ["A100-SXM4-40GB", "H100 80GB HBM3"]),
        ("GPU-bb", ["A100-SXM4-40GB"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_a_node_sees_the_gpus_that_its_processes_may_use(visible, names):
    assert [name for name, _ in visible_gpus(visible, nvml(*TWO))] == names


def test_a_machine_without_a_driver_has_no_gpus():
    assert visible_gpus(None, nvml(*TWO, driver=False)) == ()


def test_a_machine_s_gpus_count_as_its_smallest():
    machine = with_gpus(Machine("a", 8), 2, Seen(visible_gpus(None, nvml(*TWO)), "cuda"))
    assert (machine.gpus, machine.gpu_gib, machine.lacks) == (2, pytest.approx(40), "")
    assert machine.gpu_kind == "H100 80GB HBM3 and A100-SXM4-40GB"


def test_gpus_that_a_node_offers_but_cannot_show_are_no_ground_for_a_plan():
    machine = with_gpus(Machine("a", 8), 8, Seen((), "cuda"))
    assert machine.gpu_gib is None
    assert machine.lacks.startswith("node a offers 8 GPUs to Ray, but their memory cannot be read there (NVML shows 0)")


def test_this_machine_is_looked_at_without_cuda_in_the_driver(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was initialised"))
    assert machines.seen_here().vllm in ("cpu", "cuda", "")
