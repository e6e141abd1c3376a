"""A file appears whole or not at all, whatever ends the process that writes it.

    text or a block that writes -> a temporary file next to the place -> on the disk -> renamed into the place

An error in between removes the temporary file and leaves what was in the place before. A process that is killed in
between leaves a hidden `.NAME.tmp`, which nobody reads.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_FULL = ("No space left on device", "Disk quota exceeded", "[Errno 28]", "[Errno 122]")


def write_atomically(place: Path, text: str) -> None:
    with taking_place(place) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def taking_place(place: Path, *, rivals: bool = False) -> Iterator[Path]:
    """Gives the block a temporary file to write, which is synced to the disk and then renamed to `place`.

    The name of the temporary file is fixed, unless there are `rivals`: other processes that may write the same place
    at the same time.
    """
    temporary = place.with_name(f".{place.name}.{f'{secrets.token_hex(8)}.' if rivals else ''}tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_names(place.parent)


def sync_names(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a rename outlasts a power cut; some file systems cannot."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(problem: object) -> bool:
    """Whether an error, or the text of one, says that the disk is full, or the user's share of it."""
    number = getattr(problem, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(problem) for sign in _FULL)
