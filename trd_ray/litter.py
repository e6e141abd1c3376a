"""What a killed process leaves outside the run directory, and who removes it.

    owned_folder()  ->  a temporary folder that somebody holds by a lock        for sockets, adapters, rendezvous files
    sweep()         ->  removes the folders whose holder is gone
    semaphores()    ->  names in /dev/shm that processes have open   -> remove_semaphores(), once they have ended

A process that is killed removes nothing. Its lock goes with it, whatever ended it, so the next start of a run on that
machine can tell a folder that is in use from one that is litter. A folder without a lock is left alone: it is another
program's. So is one of another machine, where temporary folders lie on shared storage: not all of that shares its
locks. Semaphores have no owner that can be asked, so whoever started the processes notes theirs while they live.

Only Python's own modules are needed here: the process above a run (trd_ray.session.supervise) imports nothing of Ray.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

PREFIX = "trd-"
OWNER = ".owner"
SHARED = Path("/dev/shm")
OURS = ("sem.mp-", "psm_")  # as Python's multiprocessing calls its locks and shared memory


def owned_folder() -> tuple[Path, int]:
    """A new temporary folder, and the lock on it: it is owned as long as any process has the descriptor open.

    The name is short: the path of a socket in it must not be longer than 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    unnamed = folder / f"{OWNER}.new"
    lock = os.open(unnamed, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.suppress(OSError):  # a full disk: then nobody removes it but who made it
        os.write(lock, _here())
    unnamed.rename(folder / OWNER)  # nobody finds a lock there that is not held yet
    return folder, lock


def sweep(place: Path | None = None) -> list[Path]:
    """Remove the owned folders in `place`, by default the temporary folder, that nobody owns any more."""
    swept = []
    for folder in sorted((place or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not _is_abandoned(folder / OWNER):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def _is_abandoned(owner: Path) -> bool:
    """Whether there is a lock of this machine that nobody holds; raises OSError where there is no lock at all."""
    lock = os.open(owner, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if os.read(lock, 256) != _here():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _here() -> bytes:
    return socket.gethostname().encode()[:256]


def semaphores(processes: Iterable[int]) -> set[str]:
    """The names of the semaphores and shared memory of Python's own that these processes have mapped now."""
    mapped = set()
    for pid in processes:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as maps:
            # The C library makes a semaphore under another name, which stays in this list: the inode tells which it is.
            mapped |= {int(line.split()[4]) for line in maps if " /dev/shm/" in line}
    if not mapped:
        return set()
    with os.scandir(SHARED) as entries:
        return {entry.name for entry in entries if entry.name.startswith(OURS) and entry.inode() in mapped}


def remove_semaphores(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            (SHARED / name).unlink()
