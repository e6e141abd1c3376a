"""The checksums of a checkpoint's files, which tell later whether the files are still what was written.

files -> of() -> {"learner/__0_0.distcp": BLAKE2b, ...} -> write() -> checksums.json -> read() -> flaw()
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

FILE = "checksums.json"  # in a checkpoint's folder


def of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The checksums of `files`, by their names below `folder`."""
    return {str(file.relative_to(folder)): _digest(file, from_disk=False) for file in files}


def flaw(folder: Path, expected: dict[str, str], *, from_disk: bool = False) -> str | None:
    """What is wrong with the first file that is not as it was. None if all are.

    `from_disk` reads the disk itself, not what the system still holds of the files in memory.
    """
    for name, digest in sorted(expected.items()):
        try:
            if _digest(folder / name, from_disk) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as e:
            return f"{name} cannot be read: {e.strerror}"
    return None


def write(folder: Path, sums: dict[str, str]) -> None:
    with open(folder / FILE, "w") as file:
        json.dump(sums, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, str] | None:
    """The checksums of a checkpoint. None for one older than checksums. Raises ValueError for a damaged file."""
    if not (folder / FILE).exists():
        return None
    sums = json.loads((folder / FILE).read_text())
    if not isinstance(sums, dict) or not all(isinstance(digest, str) for digest in sums.values()):
        raise ValueError(f"{FILE} holds no checksums")
    return sums


def _digest(file: Path, from_disk: bool) -> str:
    with open(file, "rb") as content:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
