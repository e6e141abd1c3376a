"""The packed tests of many problems lie on disk and not in memory: a data set of code has gigabytes of them.

    tests, one problem at a time  ->  Spool.add()  ->  a file without a name  ->  finish(): a column that is mapped
                                                                              ->  places(): where each problem's are

The file is of this process and is deleted from the start, so nothing is left of it, however the process ends. The
column reads like any other. Only what is looked at comes into memory, and the kernel can take that back. Another
process of this machine opens the file by `path`, as long as the spool lives.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trd_ray.errors import UserError

CHUNK_BYTES = 2**30  # an Arrow array of bytes holds less than 2 GiB


class Spool:
    def __init__(self) -> None:
        self._file: Any = None  # opened for the first tests: most data sets of mathematics have none
        self._lengths: list[int] = []  # of each problem's tests, 0 where it has none
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, packed: bytes | None) -> None:
        """Append the tests of the next problem, None where it has none. Raises UserError when the disk is full."""
        self._lengths.append(len(packed or b""))
        if not packed:
            return
        try:
            if self._file is None:
                self._file = opened()
            self._file.write(packed)
        except OSError as e:
            raise self._no_room(e) from e

    def finish(self, ids: Iterable[str]) -> pa.ChunkedArray:
        """The tests of all problems as a column, and `ids` as the names of the problems for `places`."""
        lengths = np.array(self._lengths, np.int64)
        ends = np.cumsum(lengths)
        self._places = dict(zip(ids, zip((ends - lengths).tolist(), self._lengths, strict=True), strict=True))
        if self._file is None:
            return pa.chunked_array([pa.nulls(len(lengths), pa.binary())])
        try:
            self._file.flush()
        except OSError as e:
            raise self._no_room(e) from e
        whole = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ))
        chunks = []
        first = start = 0
        while first < len(lengths):
            end = max(first + 1, int(np.searchsorted(ends, start + CHUNK_BYTES, side="right")))
            chunks.append(_array(whole.slice(start, int(ends[end - 1]) - start), lengths[first:end]))
            first, start = end, int(ends[end - 1])
        return pa.chunked_array(chunks, pa.binary())

    @property
    def path(self) -> str:
        """The file, for another process of this machine to open."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def places(self, ids: Iterable[str]) -> np.ndarray:
        """Where in the file the tests of these problems begin, and how many bytes they have, maybe 0: int64 [B, 2]."""
        return np.array([self._places[one] for one in ids], np.int64).reshape(-1, 2)

    def _no_room(self, e: OSError) -> UserError:
        return UserError(
            f"the tests of the problems could not be written to {folder()} ({e.strerror}) after "
            f"{sum(self._lengths) / 2**30:.1f} GiB of them: make room there, or set the environment variable TMPDIR to "
            "a folder of a larger disk"
        )


def spooled(found: Iterable[dict[str, Any]], schema: pa.Schema) -> tuple[pa.Table, Spool]:
    """Rows as a table of a schema that has problem_id and tests, and the spool of these tests."""
    spool = Spool()
    columns: dict[str, Any] = {name: [] for name in schema.names if name != "tests"}
    for row in found:
        spool.add(row.get("tests"))
        for name, column in columns.items():
            column.append(row.get(name))
    return pa.table(columns | {"tests": spool.finish(columns["problem_id"])}, schema=schema), spool


def where(table: pa.Table, keep: Sequence[bool]) -> pa.Table:
    """The rows to keep, with their tests as slices: `Table.filter` would copy these from the file into memory."""
    mask = np.asarray(keep, bool)
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))  # where rows to keep begin and end, in turn
    tests = table["tests"]
    slices = [chunk for i, j in edges.reshape(-1, 2).tolist() for chunk in tests.slice(i, j - i).chunks]
    # Slices of the texts would be as many chunks, and to take the texts of a step from thousands of chunks is slow.
    texts = table.drop_columns(["tests"]).filter(pa.array(mask)).combine_chunks()
    kept = texts.append_column(table.schema.field("tests"), pa.chunked_array(slices, tests.type))
    return kept.select(table.column_names)


def opened() -> Any:
    return tempfile.TemporaryFile(dir=folder(), prefix="trd_ray-tests-")


def folder() -> Path:
    """Where the tests lie: in TMPDIR, else in /var/tmp, which is for what is large; /tmp may be in memory."""
    usual = Path(os.environ.get("TMPDIR") or "/var/tmp")
    return usual if os.access(usual, os.W_OK) else Path(tempfile.gettempdir())


def _array(data: pa.Buffer, lengths: np.ndarray) -> pa.Array:
    """Consecutive pieces of a buffer as one array of bytes, null where a length is 0."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = np.packbits(lengths > 0, bitorder="little")
    return pa.Array.from_buffers(
        pa.binary(), len(lengths), [pa.py_buffer(present), pa.py_buffer(offsets), data], int((lengths == 0).sum())
    )
