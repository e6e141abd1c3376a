"""The file system of the sandbox, built by the first process that util-linux's unshare starts.

    the host's files  ->  a tmpfs with read-only binds, /proc, /dev  ->  pivot_root  ->  exec the harness

bubblewrap does the same by itself. The plan comes from `backends.py`.

This process has power over its namespaces, and over everything where the caller is root. It gives that up before it
executes the harness, because the kernel decides what others may do to a process by the user namespace in which it was
executed.
"""

import ctypes
import os

from . import confine

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_MNT_DETACH = 2
_KEEP = {os.ST_NOSUID: _NOSUID, os.ST_NODEV: _NODEV, os.ST_NOEXEC: _NOEXEC}  # flags a user namespace may not clear

_libc = ctypes.CDLL(None, use_errno=True)


def main(plan: dict) -> None:
    _libc.sethostname(b"sandbox", 7)
    sources = [(os.open(source, os.O_PATH), target) for source, target in plan["read_only"]]
    devices = [(os.open(f"/dev/{name}", os.O_PATH), f"/dev/{name}") for name in plan["devices"]]
    root = "/tmp"  # a folder that exists everywhere; the host's own is out of sight in this mount namespace alone
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    for fd, target in sources:
        _bind(fd, root + target, _RDONLY | _NOSUID | _NODEV)
    for target in plan["hidden"]:
        _mount("tmpfs", root + target, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k")
    for fd, target in devices:
        _bind(fd, root + target, _NOSUID | _NOEXEC)
    for name, target in plan["links"]:
        os.symlink(target, root + name)
    os.makedirs(root + "/proc")
    _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    for name in ("sys", "sysrq-trigger", "irq", "bus"):
        if os.path.exists(f"{root}/proc/{name}"):
            _bind(
                os.open(f"{root}/proc/{name}", os.O_PATH), f"{root}/proc/{name}", _RDONLY | _NOSUID | _NODEV | _NOEXEC
            )
    os.makedirs(root + "/tmp")
    _mount("tmpfs", root + "/tmp", "tmpfs", _NOSUID | _NODEV, plan["folder_options"])
    os.chdir(root)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount2")
    _mount("", "/", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/tmp")
    os.closerange(3, 1024)
    confine.enter_user_namespace(plan["uid"])
    os.execv(plan["command"][0], plan["command"])


def _bind(fd: int, target: str, flags: int) -> None:
    source = f"/proc/self/fd/{fd}"
    if not os.path.exists(target):
        if os.path.isdir(source):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _mount(source, target, "", _BIND)
    for kept, flag in _KEEP.items():
        if os.statvfs(target).f_flag & kept:
            flags |= flag
    _mount("", target, "", _REMOUNT | _BIND | flags)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(result, f"mount {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
