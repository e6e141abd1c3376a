"""The cards as torch sees them, and what they do: a matrix product's numbers and speed, a copy's speed, NCCL's way.

Needs torch alone.
"""

import importlib
import time
from pathlib import Path

from trd_ray.doctor.gpu.flops import peak_tflops
from trd_ray.doctor.gpu.outcome import Figures, PartFailed

SIZE = 8192
REPEATS = 20


def run(folder: Path) -> Figures:
    import torch
    from torch.cuda import nccl

    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    figures: Figures = {
        "card": f"{torch.cuda.device_count()} x {name}",
        "GiB": memory,
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "NCCL": ".".join(map(str, nccl.version())),
    }
    for module in ("vllm", "ray"):
        figures[module] = _version(module)
    figures["bf16 TFLOP/s"] = tflops = matmul_tflops()
    if peak := peak_tflops(name):
        figures["of its data sheet"] = f"{tflops / peak:.0%}"
    figures["copy GB/s"] = _copy_gb_s()
    if torch.cuda.device_count() > 1:
        pairs = [(a, b) for a in range(torch.cuda.device_count()) for b in range(torch.cuda.device_count()) if a != b]
        direct = sum(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)
        figures["pairs with direct access"] = f"{direct} of {len(pairs)}"
    if problem := _broken_bindings():
        raise PartFailed(problem, figures)
    if (wrong := _wrong_product()) > 1e-2:
        raise PartFailed(f"a bfloat16 product is {wrong:.1e} of its norm away from the float64 one", figures)
    return figures


def matmul_tflops() -> float:
    """What the fastest plain bfloat16 product reaches here: the floor under every other share."""
    import torch

    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * SIZE**3 / _seconds(lambda: torch.mm(a, b, out=out)) / 1e12


def _copy_gb_s() -> float:
    """Bytes read and written a second within the card's memory."""
    import torch

    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source)) / 1e9


def _seconds(work) -> float:
    """Of one call, after some that warm up."""
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(REPEATS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / REPEATS


def _wrong_product() -> float:
    import torch

    a, b = (torch.randn(256, 4096, dtype=torch.float64) for _ in range(2))
    exact = a @ b.T
    found = (a.cuda().bfloat16() @ b.cuda().bfloat16().T).double().cpu()
    return float((found - exact).norm() / exact.norm())


def _broken_bindings() -> str:
    """What is wrong with CUDA's Python packages, which vLLM's kernels need; "" where they work or are not installed.

    Releases of cuda-python before 13 hold files of cuda-bindings too, and overwrite them.
    """
    if _version("cuda-core") == "not installed":
        return ""
    try:
        importlib.import_module("cuda.core")
        importlib.import_module("cuda.bindings.nvml")
    except Exception as e:  # what half-overwritten modules can raise
        return f"cuda.core cannot be imported ({type(e).__name__}: {e}): install requirements/gpu.lock afresh"
    return ""


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
