"""A cache on disk for what is expensive to make from a data set, under a hash of all that it was made from.

    files and settings -> digest() -> kept()      -> the table, made on the first call and read on every later one
                                      kept_file() -> its file, for a table larger than memory

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
    return pq.read_table(kept_file(name, schema, lambda: [make()])).cast(schema)


def kept_file(name: str, schema: pa.Schema, make: Callable[[], Iterable[pa.Table]]) -> Path:
    """The Parquet file of the table of this name, which need not fit into memory. `make` makes its parts in order."""
    file = folder() / f"{name}.parquet"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with taking_place(file, rivals=True) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for part in make():
                writer.write_table(part)
    return file
