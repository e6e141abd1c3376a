"""The ways to start the harness: in namespaces that bubblewrap or util-linux's unshare makes, or in none.

- Root with every right: the tools make the namespaces as root. The harness then becomes an unprivileged user in a user
  namespace of its own.
- Anyone else, and root in a container: the namespaces belong to a user namespace.
"""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath

from trd_ray.errors import Lost, UserError
from trd_ray.sandbox.interpreter import HARNESS, PACKAGES, Interpreter, this_interpreter
from trd_ray.sandbox.process import Broken, Launch, Process

UNSAFE = "unsafe_no_sandbox"
MAX_FILES = 20_000  # in the temporary folder, where the tool can say so; the harness allows fewer
_AUTO = ("bubblewrap", "unshare")
_DEVICES = ("null", "urandom")
_LINKS = {
    "/dev/random": "urandom",
    "/dev/shm": "/tmp",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "fd/0",
    "/dev/stdout": "fd/1",
    "/dev/stderr": "fd/2",
}
_OLDEST_KERNEL = (5, 14)  # since then RLIMIT_NPROC counts per user namespace
_CAP_SYS_ADMIN = 21
_PROBE_TIMEOUT_S = 20.0
_PAUSES_S = (0.5, 5.0)  # before a start is tried again
_MIB = 1 << 20


def working(backend: str) -> str:
    """The backend's name, or for "auto" the first that can run a program here. UserError, with the remedy."""
    complaints = {}
    for name in _AUTO if backend == "auto" else (backend,):
        if name not in _LAUNCHES:
            raise UserError(f"verify.sandbox is {name!r}: set it to auto, {', '.join(_LAUNCHES)}")
        complaints[name] = _complaint(name)
        if not complaints[name]:
            return name
    tried = "; ".join(f"{name}: {why}" for name, why in complaints.items())
    raise UserError(
        f"verify.sandbox={backend} cannot isolate a program on this machine ({tried}): install bubblewrap (`sudo apt "
        "install bubblewrap`); where user namespaces are restricted, allow them (`sudo sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu 23.10 and later, `user.max_user_namespaces` above "
        "0); run a container with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`, or "
        f"privileged; or, where programs that a model wrote may see and change all that you can, set "
        f"verify.sandbox={UNSAFE}"
    )


def start(backend: str, config: dict) -> Process:
    """A new sandbox, ready for its first case. Lost where the machine refuses it again and again."""
    for pause_s in _PAUSES_S:
        try:
            return _started(backend, config)
        except (RuntimeError, OSError):  # out of processes or memory for the moment, and no fault of the program
            time.sleep(pause_s)
    try:
        return _started(backend, config)
    except (RuntimeError, OSError) as e:
        raise Lost(f"this machine starts no sandbox any more ({e})") from e


def _started(backend: str, config: dict) -> Process:
    numpy = "numpy" in config["prelude"] + config["source"]
    return Process(_LAUNCHES[backend](config["limits"]["files_bytes"], numpy), config)


@lru_cache(maxsize=8)
def _complaint(backend: str) -> str:
    """Why the backend cannot run a program, "" if it can: a tool that is installed may still not be allowed to."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < _OLDEST_KERNEL and backend != UNSAFE:
        return f"Linux {'.'.join(map(str, _OLDEST_KERNEL))} or later is needed, this is {os.uname().release}"
    limits = {
        "time_s": _PROBE_TIMEOUT_S / 2,
        "wall_s": _PROBE_TIMEOUT_S,
        "memory_bytes": 256 * _MIB,
        "output_bytes": 1 << 10,
    }
    limits |= {"files_bytes": _MIB, "processes": 4}
    config = {"source": "print(6 * 7)", "entry_point": "", "prelude": "", "limits": limits}
    try:
        process = _started(backend, config)
        try:
            report, stdout = process.ask({}, b"", _PROBE_TIMEOUT_S, 1 << 10)
        finally:
            process.close()
    except (RuntimeError, OSError, Broken) as e:
        return str(e) or type(e).__name__
    return "" if stdout == b"42\n" else f"a trivial program ended with {report.get('detail')!r}"


def _bubblewrap(files_bytes: int, numpy: bool) -> Launch:
    python = this_interpreter()
    uid = None
    user = None
    shown = python.files + (python.packages if numpy else ())
    if _privileged():
        uid = _unused_uid()
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        user = _unused_uid() if os.geteuid() == 0 else None
        rights = ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command = [_tool("bwrap"), *rights, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup", "--hostname", "sandbox", "--as-pid-1"]
    targets = [target for _, target in shown]
    for folder in sorted({str(parent) for path in (*targets, "/dev/null") for parent in PurePath(path).parents}):
        command += ["--dir", folder]  # which others may enter, unlike those that a bind makes
    for source, target in shown:
        command += ["--ro-bind", source, target]
    for folder in python.hidden:
        command += ["--tmpfs", folder, "--remount-ro", folder]
    for name in _DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in _LINKS.items():
        command += ["--symlink", target, name]
    command += ["--proc", "/proc", "--perms", "1777", "--size", str(files_bytes), "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--", *_harness(python, HARNESS)]
    return Launch(command, _environment(python, "/tmp"), uid=uid, user=user)


def _unshare(files_bytes: int, numpy: bool) -> Launch:
    python = this_interpreter()
    uid = 0
    user = None
    flags = ["--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
    if _privileged():
        uid = _unused_uid()
    else:
        user = _unused_uid() if os.geteuid() == 0 else None
        flags += ["--user", "--map-root-user"]
    plan = {
        "read_only": python.files + (python.packages if numpy else ()),
        "hidden": python.hidden,
        "devices": _DEVICES,
        "links": list(_LINKS.items()),
        "folder_options": f"mode=1777,size={files_bytes},nr_inodes={MAX_FILES}",
        "uid": uid,
        "command": _harness(python, HARNESS),
    }
    mount = _python(python, os.path.dirname(__file__), f"from inside.mounts import main; main({plan!r})")
    command = [_tool("unshare"), *flags, "--", *mount]
    return Launch(command, _environment(python, "/tmp"), user=user)


def _no_sandbox(files_bytes: int, numpy: bool) -> Launch:
    """Limits, a session, a folder and an environment of its own; the program sees all that this user may see."""
    python = this_interpreter()
    base = tempfile.mkdtemp(prefix="trd-unsafe-")
    for source, target in python.files + python.packages:
        if target.startswith((HARNESS, PACKAGES)):
            os.makedirs(os.path.dirname(base + target), exist_ok=True)
            os.symlink(source, base + target)
    os.mkdir(f"{base}/tmp")
    command = _harness(python, base + HARNESS)
    return Launch(command, _environment(python, f"{base}/tmp"), isolated=False, base=base)


_LAUNCHES: dict[str, Callable[[int, bool], Launch]] = {
    "bubblewrap": _bubblewrap,
    "unshare": _unshare,
    UNSAFE: _no_sandbox,
}


def _harness(python: Interpreter, path: str) -> list[str]:
    return _python(python, path, "from inside.harness import main; main()")


def _python(python: Interpreter, path: str, code: str) -> list[str]:
    return [python.executable, "-S", "-s", "-P", "-c", f"import sys; sys.path.append({path!r}); {code}"]


def _environment(python: Interpreter, folder: str) -> dict[str, str]:
    """All environment variables. The hash seed is fixed, so that no verdict depends on the order of a set."""
    fixed = {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    fixed |= {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    fixed |= {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    return fixed | ({"LD_LIBRARY_PATH": python.library_path} if python.library_path else {})


def _privileged() -> bool:
    if os.geteuid() != 0:
        return False
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> _CAP_SYS_ADMIN & 1)


def _unused_uid() -> int:
    """A user that owns nothing and shares no quota: a random one above all that people assign, else nobody."""
    with open("/proc/self/uid_map") as file:
        last = max(int(first) + int(count) - 1 for first, _, count in map(str.split, file))
    return 1_900_000_000 + secrets.randbelow(100_000_000) if last >= 2_000_000_000 else 65534


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path
