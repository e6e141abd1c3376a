"""A folder on another file system, whatever pyarrow reaches: s3://, gs://, abfs://, hdfs://, or a path.

    "s3://bucket/runs", "opsd"  ->  Elsewhere.at()  ->  put() a file, replace() a small one, get(), read(), listing()

- A file of `put` is complete once `put` has returned. Until then a part of it may be there.
- A small file of `replace` is there whole, as it was or as it is now.
- What fails raises OSError, also where pyarrow raises something else.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from trd_ray.errors import UserError

CHUNK = 8 * 2**20  # bytes that are copied at a time
# Folders of these exist by the names of the files in them.
_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True)
class Copy:
    """What a file holds."""

    size: int
    blake2b: str


@dataclass(frozen=True)
class Elsewhere:
    url: str  # as the user knows it, with the folder's name
    system: fs.FileSystem
    path: str

    @classmethod
    def at(cls, url: str, name: str) -> "Elsewhere":
        """The folder `name` in the folder `url`, which need not exist yet. Raises UserError if it cannot be reached."""
        try:
            with _as_os_error():
                system, path = fs.FileSystem.from_uri(url)
                place = cls(_joined(url, name), system, f"{path.rstrip('/')}/{name}")
                place.is_there("")
        except OSError as e:
            raise UserError(
                f"checkpoint.mirror={url} cannot be reached ({short(e)}): correct it, or give this machine the network "
                "and the credentials for it"
            ) from e
        return place

    def is_folder(self, folder: Path) -> bool:
        """Whether this is that folder of this machine, by whatever path."""
        if not isinstance(self.system, fs.LocalFileSystem):
            return False
        here = Path(self.path)
        return here.resolve() == folder.resolve() or (here.exists() and folder.exists() and here.samefile(folder))

    def is_there(self, name: str) -> bool:
        return self._type(name) != fs.FileType.NotFound

    def read(self, name: str) -> bytes | None:
        """A small file, None if it is not there."""
        with _as_os_error():
            if self._type(name) != fs.FileType.File:
                return None
            with self.system.open_input_stream(self._at(name)) as file:
                return file.read()

    def replace(self, name: str, content: bytes) -> None:
        written = name if self._is_object_store else f"{name}.new"  # an object is seen when it is whole
        with _as_os_error():
            self._make_folder_of(name)
            with self.system.open_output_stream(self._at(written)) as file:
                file.write(content)
            if written != name:
                self.system.move(self._at(written), self._at(name))

    def put(self, file: Path, name: str, on_bytes: Callable[[int], object] = lambda size: None) -> Copy:
        """Copy a file here; `on_bytes` is told of each part, and may raise to give up."""
        with _as_os_error():
            self._make_folder_of(name)
            with open(file, "rb") as source, self.system.open_output_stream(self._at(name)) as out:
                return _copied(source, out, on_bytes)

    def get(self, name: str, file: Path, on_bytes: Callable[[int], object] = lambda size: None) -> Copy:
        """Copy a file from here into a new file, which is on the disk when this returns."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _as_os_error(), self.system.open_input_stream(self._at(name)) as source, open(file, "xb") as out:
            copied = _copied(source, out, on_bytes)
            out.flush()
            os.fsync(out.fileno())
            return copied

    def listing(self, name: str) -> list[str]:
        """The names below a folder that are files, relative to it."""
        with _as_os_error():
            found = self.system.get_file_info(fs.FileSelector(self._at(name), recursive=True, allow_not_found=True))
            start = len(self._at(name)) + 1
            return sorted(info.path[start:] for info in found if info.type == fs.FileType.File)

    def delete_folder(self, name: str) -> None:
        with _as_os_error():
            if self._type(name) == fs.FileType.Directory:
                self.system.delete_dir(self._at(name))

    def delete(self, name: str) -> None:
        with _as_os_error():
            if self._type(name) == fs.FileType.File:
                self.system.delete_file(self._at(name))

    def _type(self, name: str) -> fs.FileType:
        with _as_os_error():
            [info] = self.system.get_file_info([self._at(name)])
            return info.type

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    @property
    def _is_object_store(self) -> bool:
        return self.system.type_name in _OBJECT_STORES

    def _make_folder_of(self, name: str) -> None:
        if not self._is_object_store:
            self.system.create_dir(self._at(name).rpartition("/")[0], recursive=True)


def short(e: BaseException) -> str:
    """Why it failed, in one line."""
    return " ".join(str(e).split())[:300] or type(e).__name__


def digest_of(file: Path) -> Copy:
    with open(file, "rb") as source:
        return _copied(source, None, lambda size: None)


def _copied(source: Any, out: Any, on_bytes: Callable[[int], object]) -> Copy:
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    while part := source.read(CHUNK):
        if out is not None:
            out.write(part)
        digest.update(part)
        size += len(part)
        on_bytes(len(part))
    return Copy(size, digest.hexdigest())


def _joined(url: str, name: str) -> str:
    """The address of a folder in the place `url`, without the options of the place."""
    return f"{url.partition('?')[0].rstrip('/')}/{name}"


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, TypeError) as e:
        raise OSError(short(e)) from e
