"""A run directory belongs to one process at a time, can be written to, and outlives the job.

claim(path) -> a file lock, which the kernel drops when the process dies, whatever ends it
with reading(checkpoint): ...  -> the run does not delete that checkpoint meanwhile
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trd_ray.errors import UserError

ATTEMPTS = 3  # where another process has claimed it
LOOKED_AT = 100  # attempts in all, since others may only look
PAUSE_S = 0.05


def claim(path: Path) -> int:
    """Lock the directory for this process; raises UserError if another holds it, or if it cannot be written to."""
    with writing(path):
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(lock)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {started}".encode())
    except BlockingIOError as e:
        holder = os.read(lock, 200).decode(errors="replace") or "another process"
        os.close(lock)
        raise UserError(
            f"run directory {path} is in use by {holder}: wait for it, stop it, or set run_dir to another place"
        ) from e
    except OSError as e:
        os.close(lock)
        locks = e.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        remedy = "mount it with file locks (Lustre: -o flock), or" if locks else "make room there, or"
        raise UserError(
            f"run directory {path} cannot be claimed ({e.strerror}): {remedy} set run_dir to another place"
        ) from e
    return lock


def _lock(lock: int, kind: int = fcntl.LOCK_EX) -> None:
    """Lock it, by default for this process alone.

    Who only looks whether it is locked (`trd status`, `is_read`) holds it for a moment.
    """
    claimed = 0
    for attempt in range(1, LOOKED_AT + 1):
        try:
            return fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            claimed += not _is_shared(lock)
            if claimed == ATTEMPTS or attempt == LOOKED_AT:
                raise
            time.sleep(PAUSE_S)


def _is_shared(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Keep its run from deleting the checkpoint while the block reads it; raises OSError if it is gone."""
    lock = os.open(checkpoint / "state.json", os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            _lock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def is_read(checkpoint: Path) -> bool:
    """Whether somebody is `reading` it."""
    try:
        lock = os.open(checkpoint / "state.json", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into a UserError that names the run directory."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"run directory {path} cannot be written to ({e.strerror}): make room or give write permission there, or "
            "set run_dir to another place"
        ) from e


def require_lasting(path: Path) -> None:
    """Refuse a place inside the copy of the code that Ray makes for a submitted job and deletes after it."""
    if {"runtime_resources", "working_dir_files"} <= set(path.parts):
        raise UserError(
            f"the run directory {path} lies in Ray's temporary copy of the code, which is deleted after the job: set "
            f"run_dir to a folder that all nodes see, such as run_dir=/shared/runs/{path.name}"
        )
