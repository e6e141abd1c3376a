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

ROWS_OF_A_GROUP = 1000  # which are in memory when a file is written


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
    found = pq.read_table(kept_file(name, make))
    for field in schema:  # a column that is newer than the file has nothing in it
        if field.name not in found.column_names:
            found = found.append_column(field, pa.nulls(found.num_rows, field.type))
    return found.select(schema.names).cast(schema)


def kept_file(name: str, make: Callable[[], pa.Table]) -> Path:
    """Like `kept`, but the Parquet file itself, for a table larger than memory: `make` may give a mapped one."""
    file = folder() / f"{name}.parquet"
    if not file.is_file():
        table = make()  # this takes hours and the writing seconds: a process that is killed leaves no part of a file
        file.parent.mkdir(parents=True, exist_ok=True)
        with taking_place(file, rivals=True) as temporary:
            pq.write_table(table, temporary, row_group_size=ROWS_OF_A_GROUP)
    return file
