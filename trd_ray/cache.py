"""A cache on disk for what is expensive to make from a data set, under a hash of all that it was made from.

    files and settings -> digest() -> kept() -> the table, made on the first call and read on every later one

A file appears whole (trd_ray.files), so a crash or a second process never leaves half of one.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray.files import taking_place


def root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trd_ray"


def folder() -> Path:
    return root() / "problems"


def digest(files: Iterable[Path], *settings: object) -> str:
    """A hash of settings and of the files' contents, not their names: a data set that was moved is the same one."""
    total = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()


def kept(name: str, schema: pa.Schema, make: Callable[[], pa.Table]) -> pa.Table:
    """The table of this name. `make` makes it where there is none yet."""
    file = folder() / f"{name}.parquet"
    if file.is_file():
        return pq.read_table(file).cast(schema)
    table = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    with taking_place(file, rivals=True) as temporary:
        pq.write_table(table, temporary)
    return table
