"""One machine, asked what it has: Python, packages, GPUs, compilers, memory, disk, sandbox, ports, and the hub.

    Wanted  ->  examine()  ->  a list of plain dicts, the fields of findings.Finding

`trd doctor` calls it here, and sends it by value to every node of a cluster. So it must run where another trd_ray is
installed or none, and beside its sandbox check, which says so, it imports nothing of the package when it is called.
Every question has a deadline, and one that cannot be answered is "not known".
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trd_ray.doctor.against_lock import NEEDED, against, how_to_install, lock_of_this_machine, version
from trd_ray.doctor.holdings import hub_cache, model_here, problems_here, reach_hub
from trd_ray.preflight.compilers import no_compiler

GIB = 2**30
TORCH_S = 25.0  # to import torch from a cold disk
TOOL_S = 10.0
MIN_FREE_GIB = 5.0  # of disk: below it a checkpoint of a small model does not fit
MIN_MEMORY_GIB = 2.0
PORTS = {6379: "Ray's head", 8265: "Ray's dashboard and job server"}
# torch's CUDA -> the oldest branch of NVIDIA's driver that runs it.
DRIVERS = {11: 450, 12: 525, 13: 580}
PROBE = """
import json, torch
c = torch.cuda
seen = c.is_available()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "count": c.device_count() if seen else 0,
    "nccl": ".".join(map(str, c.nccl.version())) if torch.version.cuda else None,
    "kinds": sorted({"sm_%d%d" % c.get_device_capability(i) for i in range(c.device_count())}) if seen else [],
    "built": c.get_arch_list() if seen else [],
}))
"""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a machine; plain data, which travels to the nodes."""

    locks: dict[str, dict[str, str]]
    python: tuple[int, int]  # of the driver, which all nodes share
    models: tuple[tuple[str, str, str], ...] = ()  # (role, path, revision)
    problems: tuple[tuple[str, str], ...] = ()  # (key, path)
    folders: tuple[str, ...] = ()  # that are written to, beside the hub's cache and the temporary folder
    sandbox: str = "auto"
    runs_code: bool = False
    compiles: bool = False
    object_store_gib: float | None = None  # that Ray will make here; None: a cluster has made its own
    gpus: str = (
        ""  # that the recipe says it is for, "8 GPUs of 80 GB"; "" for none, and where a cluster has to have them
    )
    a_node: bool = False  # of a cluster that runs, so Ray's ports are taken
    made_here: tuple[str, ...] = field(default=())  # names that need no hub


def examine(wanted: Wanted) -> list[dict]:
    """Everything about this machine, in the order of the table; never raises for what a machine lacks."""
    lines: list[dict] = []
    gpus = gpus_seen()
    lines += _python(wanted)
    lines += _packages(wanted, bool(gpus))
    lines += _cards(gpus, wanted.gpus)
    lines += _compilers(wanted, bool(gpus))
    lines += _memory()
    lines += _shared_memory(wanted, bool(gpus))
    lines += _disks(wanted)
    lines += _sandbox(wanted)
    lines += _ports(wanted)
    lines += _models_and_data(wanted)
    return lines


def line(what: str, state: str, found: str, remedy: str = "", needed: bool = False) -> dict:
    return {"what": what, "state": state, "found": found, "remedy": remedy, "needed": needed}


def _python(wanted: Wanted) -> list[dict]:
    here = "{}.{}.{}".format(*sys.version_info[:3])
    if sys.version_info[:2] != wanted.python:
        driver = "{}.{}".format(*wanted.python)
        return [line("Python", "lacks", here, f"start this node's Ray with Python {driver}, as the driver's", True)]
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return [line("Python", "lacks", here, "use Python 3.11, 3.12 or 3.13", True)]
    return [line("Python", "pass", here)]


def _packages(wanted: Wanted, has_gpus: bool) -> list[dict]:
    name = lock_of_this_machine(wanted.locks, has_gpus)
    if not name:
        return [line("packages", "not known", "the locks did not come with this installation", "work from a checkout")]
    lock = wanted.locks[name]
    differ, missing = against(lock)
    remedy = how_to_install(name)
    if not differ and not missing:
        return [line("packages", "pass", f"all {len(lock)} as in {name}")]
    lines = []
    for needed in (True, False):
        wrong = [f"{p} {h} (locked: {n})" for p, (h, n) in differ.items() if (p in NEEDED) == needed]
        wrong += [f"{p} is missing" for p in missing if (p in NEEDED) == needed]
        if wrong:
            more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
            found = f"{len(wrong)} of {len(lock)} not as in {name}: {', '.join(wrong[:6])}{more}"
            lines.append(line("packages" if needed else "other packages", "lacks", found, remedy, needed))
    return lines


# GPUs


def gpus_seen() -> list[str]:
    """ "name, memory, driver" of each GPU that a program started here may use, as NVIDIA's driver tells."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = _output(query).splitlines() if shutil.which("nvidia-smi") else []
    found = [card for card in said if card.count(", ") == 2]  # a warning can stand between them
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return found
    names = [name for name in allowed.split(",") if name.strip() not in ("", "-1")]
    numbers = [int(name) for name in names if name.strip().isdecimal()]
    return [found[n] for n in numbers if n < len(found)] if len(numbers) == len(names) else found[: len(names)]


def _output(command: list[str], timeout_s: float = TOOL_S) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _torch_facts() -> dict | None:
    """What torch says of CUDA, in a process of its own: it takes seconds, and a broken installation can crash it.

    None where torch does not start, {} where that takes too long to be waited for.
    """
    if not version("torch"):
        return None
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=TORCH_S)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {}
    except (OSError, ValueError, IndexError):
        return None


def _cards(gpus: list[str], for_gpus: str = "") -> list[dict]:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpus and hidden is None and any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/nvidiactl")):
        remedy = "load the driver (nvidia-smi must answer); in a container, run it with --gpus all"
        return [line("GPUs", "lacks", "there are GPUs, but NVIDIA's driver does not answer", remedy, True)]
    if not gpus:
        remedy = "recipes for GPUs need some, with NVIDIA's driver 580 or newer; the miniature recipes need none"
        none = "none" if hidden is None else f"none (CUDA_VISIBLE_DEVICES is {hidden!r})"
        if for_gpus:
            return [line("GPUs", "lacks", f"{none}, but the recipe is for {for_gpus}", remedy, True)]
        software = line("driver, CUDA, NCCL", "not known", "there is no GPU to ask")
        return [line("GPUs", "lacks", none, remedy), software]
    names, memory, drivers = zip(*(gpu.split(", ") for gpu in gpus), strict=True)
    kinds = ", ".join(f"{names.count(n)} x {n} ({memory[names.index(n)]})" for n in dict.fromkeys(names))
    lines = [line("GPUs", "pass", kinds)]
    if for_gpus and len(gpus) < int(for_gpus.split()[0]):
        found = f"{kinds}, but the recipe is for {for_gpus}"
        lines = [line("GPUs", "lacks", found, "trd train RECIPE --dry-run says what could be lowered", True)]
    facts = _torch_facts()
    if facts == {}:
        said = f"torch took longer than {TORCH_S:.0f} s to start"
        return [*lines, line("driver", "pass", drivers[0]), line("CUDA", "not known", said, "ask again")]
    return [*lines, *_driver(drivers[0], facts), *_cuda(len(gpus), facts), *_nccl(facts)]


def _driver(driver: str, facts: dict | None) -> list[dict]:
    if not facts or not facts["cuda"]:
        return [line("driver", "pass", driver)]
    oldest = DRIVERS.get(int(facts["cuda"].partition(".")[0]), max(DRIVERS.values()))
    if (branch := driver.partition(".")[0]).isdecimal() and int(branch) < oldest:
        found = f"{driver}, but torch's CUDA {facts['cuda']} needs {oldest}"
        return [line("driver", "lacks", found, f"install NVIDIA's driver {oldest} or newer", True)]
    return [line("driver", "pass", f"{driver} (CUDA {facts['cuda']} needs {oldest})")]


def _cuda(count: int, facts: dict | None) -> list[dict]:
    locked = how_to_install("gpu.lock")
    if not facts:
        return [line("CUDA", "lacks", "torch is not installed, or does not start", locked, True)]
    if not facts["cuda"]:
        return [line("CUDA", "lacks", f"torch {facts['torch']} is the CPU build", locked, True)]
    if facts["count"] != count and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        found = f"torch {facts['torch']} sees {facts['count']} of {count} GPUs"
        return [line("CUDA", "lacks", found, 'see what python -c "import torch; torch.cuda.init()" says', True)]
    if strange := [kind for kind in facts["kinds"] if not _has_kernels(kind, facts["built"])]:
        return [line("CUDA", "lacks", f"torch has no kernels for {', '.join(strange)}", locked, True)]
    found = f"torch {facts['torch']} for CUDA {facts['cuda']} sees {facts['count']} ({', '.join(facts['kinds'])})"
    return [line("CUDA", "pass", found)]


def _has_kernels(kind: str, built: list[str]) -> bool:
    """Whether a build of torch runs on a kind of card (sm_90): machine code of its generation, or PTX of an older."""
    mine = int(kind.removeprefix("sm_"))
    for name in built:
        prefix, _, number = name.partition("_")
        theirs = int("".join(c for c in number if c.isdecimal()))
        if theirs <= mine and (prefix == "compute" or theirs // 10 == mine // 10):
            return True
    return False


def _nccl(facts: dict | None) -> list[dict]:
    if facts and facts["nccl"]:
        return [line("NCCL", "pass", facts["nccl"])]
    return [line("NCCL", "lacks", "torch has none", how_to_install("gpu.lock"), True)]


# Machine


def _compilers(wanted: Wanted, has_gpus: bool) -> list[dict]:
    """C by the question that a run asks before it starts; C++ is for learner.compile alone."""
    named = os.environ.get("CC")
    c = next(filter(shutil.which, [named] if named else ["gcc", "clang"]), "")
    cpp = next(filter(shutil.which, ("g++", "clang++")), "")
    lacking, _, remedy = no_compiler().removeprefix("has ").partition(": ")
    if lacking:
        lines = [line("C compiler", "lacks", lacking, remedy, has_gpus)]
    else:
        lines = [line("C compiler", "pass", _of_tool(c))]
    if cpp:
        return [*lines, line("C++ compiler", "pass", _of_tool(cpp))]
    why = "none; learner.compile=true needs it"
    return [*lines, line("C++ compiler", "lacks", why, "sudo apt install g++", wanted.compiles)]


def _of_tool(tool: str) -> str:
    return next(iter(_output([tool, "--version"]).splitlines()), tool)


def _memory() -> list[dict]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) / 2**20 for name, _, rest in (text.partition(":") for text in lines)}
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    limit = _container_limit_gib()
    said = f"{free:.1f} of {total:.1f} GiB free, {len(os.sched_getaffinity(0))} cores"
    if limit and limit < total:
        free = min(free, limit)
        said += f"; this container may use {limit:.1f} GiB"
    if free < MIN_MEMORY_GIB:
        return [line("memory", "lacks", said, "end other programs, or use a larger machine", True)]
    return [line("memory", "pass", said)]


def _container_limit_gib() -> float | None:
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(place).read_text()) / GIB
        except (OSError, ValueError):
            continue
    return None


def _shared_memory(wanted: Wanted, has_gpus: bool) -> list[dict]:
    """With the 64 MiB of a container of Docker's, Ray's object store is on the disk; NCCL does not start."""
    try:
        room = shutil.disk_usage("/dev/shm")
    except OSError:
        return [line("shared memory", "lacks", "there is no /dev/shm", "mount one: tmpfs on /dev/shm", True)]
    said = f"{room.free / GIB:.1f} of {room.total / GIB:.1f} GiB free in /dev/shm"
    needs = wanted.object_store_gib or 0.0
    remedy = "docker run --shm-size=16g, or a Kubernetes emptyDir {medium: Memory} on /dev/shm"
    if room.total < 128 * 2**20:
        found = f"{said}: too little for NCCL and Ray's object store"
        return [line("shared memory", "lacks", found, remedy, has_gpus)]
    if room.free / GIB < needs:
        found = f"{said}, but Ray's object store is to have {needs:g} (cluster.object_store_gib): it would use the disk"
        return [line("shared memory", "lacks", found, remedy)]
    store = f"; Ray's object store takes {needs:g}" if needs else ""
    return [line("shared memory", "pass", said + store)]


def _disks(wanted: Wanted) -> list[dict]:
    """The folders that are named, and those that any run writes to on the machine that it runs on."""
    lines = []
    seen = set()
    remedy = "give write permission there"
    try:
        temporary = [tempfile.gettempdir()]
    except OSError as e:
        temporary = []
        lines.append(line("disk", "lacks", f"there is no temporary folder ({e.strerror})", "set TMPDIR to one", True))
    for folder in (*wanted.folders, str(hub_cache()), *temporary):
        # os.path.exists is false of what may not be looked at; its parent is then what cannot be written to.
        place = next(p for p in (Path(folder), *Path(folder).parents) if os.path.exists(p))
        try:
            device, room = place.stat().st_dev, shutil.disk_usage(place)
        except OSError as e:
            lines.append(line("disk", "lacks", f"{place} cannot be written to ({e.strerror})", remedy, True))
            continue
        if device in seen:
            continue
        seen.add(device)
        said = f"{room.free / GIB:.0f} of {room.total / GIB:.0f} GiB free for {folder}"
        if not os.access(place, os.W_OK):
            lines.append(line("disk", "lacks", f"{place} cannot be written to", remedy, True))
        elif room.free / GIB < MIN_FREE_GIB:
            lines.append(line("disk", "lacks", said, "make room there", room.free < GIB))
        else:
            lines.append(line("disk", "pass", said))
    return lines


def _sandbox(wanted: Wanted) -> list[dict]:
    try:
        from trd_ray.errors import UserError
        from trd_ray.sandbox import Sandbox
    except ImportError:
        return [line("sandbox", "not known", "trd_ray is not installed on this node", "pip install it there too")]
    try:
        return [line("sandbox", "pass", f"{Sandbox(wanted.sandbox).backend} runs a program")]
    except UserError as e:
        problem, _, remedy = str(e).partition(": install ")
        return [line("sandbox", "lacks", problem, f"install {remedy}" if remedy else str(e), wanted.runs_code)]


def _ports(wanted: Wanted) -> list[dict]:
    try:
        with socket.socket() as any_port:
            any_port.bind(("", 0))
    except OSError as e:
        return [line("ports", "lacks", f"no port can be opened ({e.strerror})", "see ulimit -n and the firewall", True)]
    if wanted.a_node:
        return []
    taken = [f"{port} ({use})" for port, use in PORTS.items() if not _free(port)]
    if taken:
        remedy = "a local run takes others; to start a head here, end what holds them, or name others in `ray start`"
        return [line("ports", "lacks", f"taken: {', '.join(taken)}", remedy)]
    return [line("ports", "pass", f"{', '.join(map(str, PORTS))} are free, and others can be opened")]


def _free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError:
            return False
    return True


def _looked(look: Callable[..., tuple[bool, str]], *asked: object) -> tuple[bool, str]:
    try:
        return look(*asked)
    except OSError as e:
        return False, f"cannot be read ({e.strerror})"


def _models_and_data(wanted: Wanted) -> list[dict]:
    """The hub, its token, and what a recipe names; the hub is needed where something that is named is not here."""
    made = wanted.made_here
    models = [(role, path, *_looked(model_here, path, revision, made)) for role, path, revision in wanted.models]
    data = [(key, path, *_looked(problems_here, path, made)) for key, path in wanted.problems]
    absent = [path for _, path, here, _ in (*models, *data) if not here]
    answers, said, token = reach_hub()
    lines = []
    for what, path, here, found in (*models, *data):
        if here:
            lines.append(line(what, "pass", f"{path}: {found}"))
        elif answers and "/" in path and not path.startswith(("/", ".", "~")):
            lines.append(line(what, "not known", f"{path}: {found}; the hub answers, so it would be fetched"))
        else:
            remedy = f"`hf download {path}` where there is a network, or name a folder that is here"
            lines.append(line(what, "lacks", f"{path}: {found}", remedy, True))
    if answers:
        lines.append(line("hub", "pass", said))
    elif absent:
        remedy = "connect, or bring the models and data here: folders and the hub's cache need no network"
        lines.append(line("hub", "lacks", f"{said}, and {absent[0]} is not here", remedy, True))
    else:
        lines.append(line("hub", "not known", f"{said}; models and data that are here need no hub"))
    private = "needed for gated models and private repositories alone: `hf auth login`"
    lines.append(line("hub token", "pass", token) if token else line("hub token", "lacks", "none", private))
    return lines
